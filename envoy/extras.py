"""What llm-d's picker tells and heeds besides the protocol, each by an option of `ext_proc`.

session_token     an answer carries `x-session-token`, which brings later requests to the replica
                  that gave it, while that is ready
endpoint_scores   metadata `x-gateway-destination-endpoint-scores`: each candidate's total
request_cost      metadata `x-gateway-inference-request-cost` at the end of an answer: its tokens
conditional       `Prefer: if-available` is answered 412 where the chosen replica holds nothing
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from warmlane.envoy.messages import Received
    from warmlane.envoy.picker import Ways
    from warmlane.router.explain import Explanation

SESSION_TOKEN: Final = b"x-session-token"
_DESTINATION: Final = b"x-gateway-destination-endpoint"
_SCORES: Final = b"x-gateway-destination-endpoint-scores"
_COST: Final = b"x-gateway-inference-request-cost"
_LONGEST: Final = 512  # of a token that is looked at


def token_of(address: str) -> bytes:
    """The token that stands for "ip:port"."""
    return base64.urlsafe_b64encode(address.encode())


def address_of(token: bytes) -> str:
    """What a token stands for, or "": a client may write anything."""
    if len(token) > _LONGEST:
        return ""
    try:
        return base64.urlsafe_b64decode(token).decode("ascii")
    except (binascii.Error, ValueError):
        return ""


def asks_for_cached(head: Received | None) -> bool:
    """Does the request say `Prefer: if-available`?"""
    return head is not None and b"if-available" in head.headers.get(b"prefer", b"").lower()


def scores(told: Explanation, ways: Ways, slot: int) -> bytes:
    """The metadata of a choice with the total of each candidate, as a tail of its answer; of ranks
    that share an address the best. It takes the place of what the answer itself tells in
    `envoy.lb`, and so tells that again."""
    lines = {line.replica: line.total for line in told.replicas}
    totals: dict[str, float] = {}
    for way in ways.fresh():
        total = None if way is None else lines.get(way.replica.name)
        if way is not None and total is not None:
            totals[way.address] = max(total, totals.get(way.address, total))
    chosen = ways.fresh()[slot]
    assert chosen is not None, "a decision names members only"
    each = b"".join([_member(name.encode(), _number(total)) for name, total in totals.items()])
    members = _member(_DESTINATION, _field(3, chosen.endpoint))
    return _metadata(members + _member(_SCORES, _field(5, each)))


def cost(tokens: int) -> bytes:
    """The metadata that ends an answer of so many tokens, as a tail of its last message."""
    return _metadata(_member(_COST, _number(float(tokens))))


# google.protobuf.Struct and Value, by their field numbers ---------------------------------------


def _metadata(members: bytes) -> bytes:
    """ProcessingResponse.dynamic_metadata with these members of `envoy.lb`."""
    return _field(8, _member(b"envoy.lb", _field(5, members)))


def _member(name: bytes, value: bytes) -> bytes:
    return _field(1, _field(1, name) + _field(2, value))


def _number(value: float) -> bytes:
    return b"\x11" + struct.pack("<d", value)


def _field(number: int, data: bytes) -> bytes:
    size, length = bytearray(), len(data)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes((number << 3 | 2,)) + bytes(size) + data
