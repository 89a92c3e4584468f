"""A very light replica for the proxy benchmark: keep-alive HTTP/1.1, a fixed answer, no model.

Answers at once, so that the proxy in front is what costs: a chat completion of about 300 bytes, or
with `"stream": true` a stream of 16 chunks. It also has what the routers ask for when they start:
health, models, metrics in vLLM's names, and vLLM's render call, which gives token ids made of the
prompt's bytes. Nothing it does is measured.

    python benchmarks/peers/backend.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from array import array
from typing import cast

import httptools
import uvloop

MODEL = "bench"
CHUNKS = 16
USAGE = {"prompt_tokens": 1000, "completion_tokens": 16, "total_tokens": 1016}
USAGE |= {"prompt_tokens_details": {"cached_tokens": 512}}


def response(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def as_json(value: object, status: str = "200 OK") -> bytes:
    return response(json.dumps(value, separators=(",", ":")).encode(), status)


def chat_answer() -> bytes:
    message = {"role": "assistant", "content": "A fixed answer of sixteen tokens or about so many."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1, "model": MODEL}
    return as_json({**head, "choices": [choice], "usage": USAGE})


def chat_stream() -> bytes:
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1}
    out = []
    for number in range(CHUNKS):
        last = number == CHUNKS - 1
        delta = {"content": f" word{number}"}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None}
        event = json.dumps({**head, "model": MODEL, "choices": [choice]}).encode()
        out.append(b"data: " + event + b"\n\n")
    out.append(b"data: [DONE]\n\n")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in out)
    kind = b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\n" + kind + chunks + b"0\r\n\r\n"


METRICS = f"""\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="{MODEL}"}} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="{MODEL}"}} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="{MODEL}"}} 0.1
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{{engine="0",model_name="{MODEL}"}} 1000.0
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="{MODEL}"}} 500.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="65536"}} 1.0
"""
ANSWER, STREAM = chat_answer(), chat_stream()
EMPTY = response(b"")
MISSING = as_json({"detail": "Not Found"}, "404 Not Found")
FIXED = {
    b"/health": EMPTY,
    b"/v1/models": as_json(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 32768}]}
    ),
    b"/metrics": response(METRICS.encode(), kind="text/plain; version=0.0.4"),
    b"/model_info": as_json({"model_path": MODEL, "served_model_name": MODEL}),
    b"/get_model_info": as_json({"model_path": MODEL, "served_model_name": MODEL}),
    b"/server_info": as_json({"model_path": MODEL, "served_model_name": MODEL}),
    b"/get_server_info": as_json({"model_path": MODEL, "served_model_name": MODEL}),
}


def render(body: bytes) -> bytes:
    """Token ids as vLLM's render call gives them: here one for each four bytes of the messages."""
    text = "".join(str(message["content"]) for message in json.loads(body)["messages"]).encode()
    ids = [word % 32000 for word in array("I", text[: len(text) // 4 * 4])]
    return as_json({"request_id": "render", "token_ids": ids, "model": MODEL})


class Backend(asyncio.Protocol):
    """One connection; pipelined requests are answered in order."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path = self._url.partition(b"?")[0]
        body = b"".join(self._body)
        if path == b"/v1/chat/completions":
            # some routers write the body anew, with its members in another order
            answer = STREAM if b'"stream":true' in body else ANSWER
        elif path == b"/v1/chat/completions/render":
            answer = render(body)
        else:
            answer = FIXED.get(path, MISSING)
        self._transport.write(answer)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Backend, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
