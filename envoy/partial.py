"""What the start of a request's body tells, where the gateway shows no more of it.

Pure functions of a head and of the bytes that came; `choice` says when they are asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from warmlane._core.scan import scan_body
from warmlane.router.errors import RequestError
from warmlane.router.mend import mended
from warmlane.router.requests import parse, rewrite_model

if TYPE_CHECKING:
    from warmlane.envoy.messages import Received
    from warmlane.router.lane import Prepared
    from warmlane.router.types import Request

_DIGITS: Final = 18  # so many fit 64 bits
# Envoy AI Gateway has read the body before us, and tells the model of it.
_TOLD_MODEL: Final = b"x-ai-eg-model"


def parse_start(method: str, head: Received, body: bytes) -> Request:
    """The request, as far as the start of its body tells. RequestError: as for a whole body, but
    that a start which is no JSON is passed."""
    found = mended(body)
    text = b"" if found is None else found[0]
    try:
        # What would have to be cut out could go on beyond the start.
        return parse(method, head.path, head.headers, text, transfer_params="reject")[0]
    except RequestError as error:
        if error.code != "invalid_json":
            raise
    return parse(method, head.path, head.headers, b"")[0]


def with_told_model(request: Request, head: Received) -> Request:
    """With the model that the gateway tells, where what is seen of the body does not."""
    told = head.headers.get(_TOLD_MODEL, b"")
    if request.model or not told:
        return request
    return msgspec.structs.replace(request, model=told.decode("utf-8", "replace"))


def reckon(prepared: Prepared, head: Received) -> None:
    """The prompt is longer than its start: it is as long as the body, and what is beyond the start
    is held by nobody. What the next turn begins with cannot be told."""
    key, told = prepared.key, told_length(head)
    if key.unit == "text" and told > key.size:
        prepared.key = msgspec.structs.replace(key, size=told)
    prepared.request = msgspec.structs.replace(prepared.request, prompt=None)


def renamed(body: bytes, model: str) -> bytes:
    """The start of a body with another model's name; the same object where no name stands in it."""
    found = mended(body)
    told = None if found is None else scan_body(found[0])
    if found is None or told is None or not told.model:
        return body
    text, kept = found
    new = rewrite_model(text, model)
    return new[: len(new) - (len(text) - kept)] + body[kept:]


def told_length(head: Received) -> int:
    """The client's own content-length, -1 without one."""
    told = head.headers.get(b"content-length", b"")
    return int(told) if told.isdigit() and len(told) <= _DIGITS else -1
