"""The yardstick of bench_ext_proc: a grpc.aio picker that returns fixed bytes and decides nothing.

Bytes in, bytes out: no protobuf object is made, nothing is parsed but the kind of a message and the
end of the body. In full duplex it sends the body back as it came, which the mode demands.

    python benchmarks/peers/fixed_picker.py asyncio|uvloop PORT IP:PORT
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import uvloop

from warmlane.envoy.proto.messages import ProcessingResponse

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
KEY = "x-gateway-destination-endpoint"
# Field numbers of ProcessingRequest, as the first byte of a message (length-delimited).
REQUEST_HEADERS, RESPONSE_HEADERS, REQUEST_BODY, TRAILERS = 0x12, 0x1A, 0x22, 0x32
RESPONSE_TRAILERS = 0x3A


def encoded(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw


def headers_answer(endpoint: str) -> bytes:
    """The header, and the same in dynamic metadata."""
    made = ProcessingResponse()
    common = made.request_headers.response
    header = common.header_mutation.set_headers.add().header
    header.key, header.raw_value = KEY, endpoint.encode()
    made.dynamic_metadata.update({"envoy.lb": {KEY: endpoint}})
    return encoded(made)


def continue_answer(kind: str) -> bytes:
    made = ProcessingResponse()
    getattr(made, kind).SetInParent()
    return encoded(made)


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def body_of(message: bytes) -> tuple[bytes, bool]:
    """HttpBody of a request_body message: its bytes, and whether they are the last."""
    size, at = varint(message, 1)
    end, body, last = at + size, b"", False
    while at < end:
        tag = message[at]
        value, at = varint(message, at + 1)
        if tag == 0x0A:
            body, at = message[at : at + value], at + value
        elif tag == 0x10:
            last = bool(value)
        elif tag & 7 == 2:
            at += value
    return body, last


def length(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def streamed(body: bytes, last: bool) -> bytes:
    """request_body.response.body_mutation.streamed_response, put together once."""
    tail = b"\x10\x01" if last else b""
    head = b"\x0a" + length(len(body))
    for tag in (b"\x1a", b"\x1a", b"\x0a", b"\x1a"):
        head = tag + length(len(head) + len(body) + len(tail)) + head
    return b"".join((head, body, tail))


async def process(context: Any, first: bytes, rest: dict[int, bytes]) -> None:
    chosen = False
    held: list[tuple[bytes, bool]] = []
    while (message := await context.read()) is not grpc.aio.EOF:
        kind = message[0]
        if kind == REQUEST_BODY:
            held.append(body_of(message))
            if held[-1][1] or chosen:
                if not chosen:
                    await context.write(first)
                    chosen = True
                for body, last in held:
                    await context.write(streamed(body, last))
                held.clear()
        elif kind in rest:
            await context.write(rest[kind])


class Table(grpc.GenericRpcHandler):
    """The one method, bytes both ways."""

    def __init__(self, endpoint: str) -> None:
        first = headers_answer(endpoint)
        rest = {
            RESPONSE_HEADERS: continue_answer("response_headers"),
            TRAILERS: continue_answer("request_trailers"),
            RESPONSE_TRAILERS: continue_answer("response_trailers"),
        }

        async def run(messages: AsyncIterator[bytes], context: Any) -> None:
            del messages
            await process(context, first, rest)

        self._method = grpc.stream_stream_rpc_method_handler(run)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._method if handler_call_details.method == PROCESS else None


async def serve(port: int, endpoint: str) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Table(endpoint),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    run = uvloop.run if sys.argv[1] == "uvloop" else asyncio.run
    run(serve(int(sys.argv[2]), sys.argv[3]))
