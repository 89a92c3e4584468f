"""Plain-Python twin of `_core.proc_answer`: the same writing, not made for speed."""

from __future__ import annotations

PIECE_BYTES = 62_000
DESTINATION = b"x-gateway-destination-endpoint"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def put(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def set_header(name: bytes, value: bytes) -> bytes:
    return put(1, put(1, put(1, name) + put(3, value)) + b"\x18\x02")


def remove_header(name: bytes) -> bytes:
    return put(2, name)


def answer(
    kind: int,
    endpoint: bytes,
    length: int = -1,
    mutation: bytes = b"",
    body: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    headers = mutation
    if length >= 0:
        headers = set_header(b"content-length", b"%d" % length) + headers
    if endpoint:
        headers = set_header(DESTINATION, endpoint) + headers
    common = put(2, headers) if headers else b""
    if body is not None:
        common += put(3, put(1, body))
    if endpoint:
        common += b"\x28\x01"
    out = put(kind - 1, put(1, common) if common else b"")
    if endpoint:
        inner = put(1, put(1, DESTINATION) + put(2, put(3, endpoint)))
        out += put(8, put(1, put(1, b"envoy.lb") + put(2, put(5, inner))))
    return out + tail


def pieces(kind: int, body: bytes, last: bool) -> list[bytes]:
    cuts = [body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES)]
    if not cuts and last:
        cuts = [b""]
    out = []
    for index, cut in enumerate(cuts):
        streamed = b"\x10\x01" if last and index == len(cuts) - 1 else b""
        streamed += put(1, cut) if cut else b""
        out.append(put(kind - 1, put(1, put(3, put(3, streamed)))))
    return out


def immediate(status: int, mutation: bytes, body: bytes, details: bytes) -> bytes:
    code = put(1, b"\x08" + _varint(status))
    return put(7, code + put(2, mutation) + put(3, body) + put(5, details))
