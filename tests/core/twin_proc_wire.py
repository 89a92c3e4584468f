"""Plain-Python twin of `_core.proc_wire`: the same reading, not made for speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

READ = {
    *("content-type", "content-length", "content-encoding", "x-session-id", "x-vllm-priority"),
    *("x-ai-eg-model", "x-session-token", "prefer", "test-epp-endpoint-selection"),
}
INTERNAL = {
    *("x-data-parallel-rank", "x-data-parallel-host-port", "x-prefiller-host-port"),
    *("x-encoder-hosts-ports", "x-kv-cache-source-host-port"),
}
PREFIXES = ("x-llm-d-", "x-gateway-", "x-warmlane-")
HINT = ("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset")
SERVED = ("envoy.lb", "x-gateway-destination-endpoint-served")


class WireError(ValueError):
    """The bytes are no message of this protocol."""


@dataclass
class Received:
    """As the compiled one."""

    kind: int = 0
    end_of_stream: bool = False
    observability: bool = False
    request_mode: int = -1
    response_mode: int = -1
    early_body: bool = False
    status: int = 0
    body: bytes = b""
    method: bytes = b""
    path: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    internal: list[bytes] | None = None
    subset: list[str] | None = None
    served: str = ""
    wanted: tuple[bytes, ...] = ()


FIELDS = tuple(name for name in Received.__dataclass_fields__ if name != "wanted")
Field = tuple[int, int, int, bytes]  # number, wire type, varint value, bytes


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WireError("varint")
        byte = data[at]
        at += 1
        if shift == 63 and byte > 1:
            raise WireError("varint")
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: bytes) -> Iterator[Field]:
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError("field number")
        if wire == 0:
            value, at = varint(data, at)
            yield number, wire, value, b""
        elif wire == 2:
            size, at = varint(data, at)
            if at + size > len(data):
                raise WireError("length")
            yield number, wire, 0, data[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > len(data):
                raise WireError("length")
            yield number, wire, 0, b""
        else:
            raise WireError("wire type")


def receive(message: bytes, wanted: tuple[bytes, ...] | None = None) -> Received:
    found = Received(wanted=wanted or ())
    for number, wire, value, data in fields(message):
        if wire == 2 and 2 <= number <= 7:
            _part(found, number, data)
        elif wire == 2 and number == 8:
            for inner, kind, _, pair in fields(data):
                if (inner, kind) == (1, 2):
                    _space(found, pair)
        elif wire == 2 and number == 9:
            _, struct = _entry(data)
            for name, packed in _members(struct):
                if name == b"upstream.address" and not found.served:
                    found.served = next(iter(_endpoints(packed)), "")
        elif wire == 2 and number == 11:
            _config(found, data)
        elif wire == 0 and number == 10:
            found.observability = value != 0
    return found


def _part(found: Received, kind: int, data: bytes) -> None:
    if found.kind != kind:
        found.kind, found.end_of_stream, found.status = kind, False, 0
        found.body, found.method, found.path = b"", b"", ""
        found.headers, found.internal = {}, None
    for number, wire, value, inner in fields(data):
        if kind in (4, 5):
            if (number, wire) == (1, 2):
                found.body = inner
            elif (number, wire) == (2, 0):
                found.end_of_stream = value != 0
        elif (number, wire) == (1, 2):
            for deeper, form, _, header in fields(inner):
                if (deeper, form) == (1, 2):
                    _header(found, header)
        elif (number, wire) == (3, 0) and kind < 4:
            found.end_of_stream = value != 0


def _header(found: Received, data: bytes) -> None:
    name = value = b""
    for number, wire, _, inner in fields(data):
        if wire == 2 and number == 1:
            name = inner
        elif wire == 2 and number in (2, 3) and inner:
            value = inner
    text = name.decode("latin-1")
    if text == ":method":
        found.method = value
    elif text == ":path":
        found.path = value.decode("utf-8", "replace")
    elif text == ":status":
        found.status = int(value) if len(value) == 3 and value.isdigit() else 0
    elif text in READ or text in INTERNAL or text.startswith(PREFIXES) or name in found.wanted:
        old = found.headers.get(name)
        found.headers[name] = value if old is None else old + b"," + value
        if text in INTERNAL or text.startswith(PREFIXES):
            found.internal = [*(found.internal or []), name]


def _config(found: Received, data: bytes) -> None:
    if found.request_mode < 0:
        found.request_mode = found.response_mode = 0
    for number, wire, value, _ in fields(data):
        if wire != 0:
            continue
        if number == 1:
            found.request_mode = value & 0xFF
        elif number == 2:
            found.response_mode = value & 0xFF
        elif number == 3:
            found.early_body = value != 0


def _entry(data: bytes) -> tuple[bytes, bytes]:
    key = value = b""
    for number, wire, _, inner in fields(data):
        if wire == 2 and number == 1:
            key = inner
        elif wire == 2 and number == 2:
            value = inner
    return key, value


def _members(struct: bytes) -> Iterator[tuple[bytes, bytes]]:
    for number, wire, _, inner in fields(struct):
        if (number, wire) == (1, 2):
            yield _entry(inner)


def _space(found: Received, data: bytes) -> None:
    space, struct = _entry(data)
    if space not in (HINT[0].encode(), SERVED[0].encode()):
        return
    for name, packed in _members(struct):
        if (space, name) == (HINT[0].encode(), HINT[1].encode()):
            found.subset = list(_endpoints(packed))
        elif (space, name) == (SERVED[0].encode(), SERVED[1].encode()):
            found.served = next(iter(list(_endpoints(packed))), "")


def _endpoints(value: bytes, nested: bool = False) -> Iterator[str]:
    for number, wire, _, inner in fields(value):
        if (number, wire) == (3, 2):
            parts = [part.strip() for part in inner.decode("utf-8", "replace").split(",")]
            yield from [part for part in parts if part]
        elif (number, wire) == (6, 2) and not nested:
            for deeper, form, _, item in fields(inner):
                if (deeper, form) == (1, 2):
                    yield from _endpoints(item, True)
