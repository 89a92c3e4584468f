"""The typed face of external processing messages: names for kinds and modes, and rare answers.

The wire itself is `_core.proc_wire` and `_core.proc_answer`; here is what is put together once
(constants) or seldom (refusals, mode overrides).
"""

from __future__ import annotations

from typing import Final

from warmlane._core.proc_answer import (
    PIECE_BYTES,
    answer,
    immediate,
    pieces,
    remove_header,
    set_header,
)
from warmlane._core.proc_wire import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX,
    GRPC,
    NONE,
    REQUEST_BODY,
    REQUEST_HEADERS,
    REQUEST_TRAILERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
    STREAMED,
    Received,
    WireError,
    receive,
)
from warmlane.router.errors import NoReplica, RouterError
from warmlane.router.problems import problem
from warmlane.router.types import Kind

__all__ = [
    "BUFFERED",
    "BUFFERED_PARTIAL",
    "CONTINUE",
    "DESTINATION",
    "FULL_DUPLEX",
    "GRPC",
    "MODES",
    "NONE",
    "PIECE_BYTES",
    "REQUEST_BODY",
    "REQUEST_HEADERS",
    "REQUEST_TRAILERS",
    "RESPONSE_BODY",
    "RESPONSE_HEADERS",
    "RESPONSE_TRAILERS",
    "STREAMED",
    "Received",
    "WireError",
    "answer",
    "immediate",
    "override",
    "pieces",
    "receive",
    "refusal",
    "remove_header",
    "set_header",
]

DESTINATION: Final = b"x-gateway-destination-endpoint"
DROPPED_REASON: Final = b"x-llm-d-request-dropped-reason"
MODES: Final = {
    "none": NONE,
    "streamed": STREAMED,
    "buffered": BUFFERED,
    "full_duplex": FULL_DUPLEX,
}
# "Go on, nothing to change", by the kind that is answered.
CONTINUE: Final = {kind: answer(kind, b"") for kind in range(2, 8)}


def override(level: int, response_mode: int) -> bytes:
    """Tail of an answer to request headers: from now on BUFFERED_PARTIAL, all else as the response
    level has it. Envoy compares this with its `allowed_override_modes`, where it has any."""
    seen = 2 if level == 0 else 1  # SKIP, SEND
    mode = bytes((2 << 3, seen, 3 << 3, BUFFERED_PARTIAL, 4 << 3, response_mode, 6 << 3, seen))
    return bytes((9 << 3 | 2, len(mode))) + mode


def refusal(error: RouterError, kind: Kind) -> tuple[int, bytes]:
    """(HTTP status, ImmediateResponse) for an error, in the shape that the kind's clients read."""
    status, headers, body = problem(error, kind)
    mutation = b"".join(
        set_header(name.encode(), value.encode("latin-1")) for name, value in headers.items()
    )
    reason = b""
    if isinstance(error, NoReplica):
        reason = b"rejected-saturated" if status == 429 else b"rejected-no-endpoints"
        mutation += set_header(DROPPED_REASON, reason)
    return status, immediate(status, mutation, body, reason or b"rejected-bad-request")
