"""The request phase: what the answer must hold, and what must reach the engine."""

from __future__ import annotations

import asyncio
import json

from warmlane.envoy.conformance.case import (
    Case,
    Probe,
    all_of,
    case,
    metadata_destination,
    pieces,
)
from warmlane.envoy.conformance.exchange import DESTINATION, Request
from warmlane.envoy.conformance.rules import MESSAGE_BYTES

DEST = "EPP protocol, Destination Endpoint"
PROTO = "ext_proc.proto, ProcessingResponse"
DUPLEX = "ext_proc, FULL_DUPLEX_STREAMED"
LLMD = "llm-d router, request handling"
HERMETIC = "llm-d router, hermetic suite"


@case("request.header", DEST, f"the answer to the headers sets {DESTINATION} to ip:port[,...]")
async def header(probe: Probe) -> None:
    await probe.routed()


@case("request.metadata", DEST, "dynamic metadata envoy.lb has the same key and the same value")
async def metadata(probe: Probe) -> None:
    exchange = await probe.routed()
    told = metadata_destination(exchange)
    probe.expect(told is not None, f"dynamic metadata envoy.lb/{DESTINATION}", exchange.metadata)
    probe.expect(
        told == exchange.destination, f"{exchange.destination!r} in the metadata too", repr(told)
    )


@case("request.in-pool", DEST, "every endpoint of the answer is one of the pool's", endpoints=1)
async def in_pool(probe: Probe) -> None:
    for number in range(8):
        exchange = await probe.routed(chunks=(probe.chat(f"Question {number}"),))
        for endpoint in probe.must_route(exchange):
            probe.expect(
                endpoint in probe.target.endpoints,
                "one of " + ", ".join(probe.target.endpoints),
                endpoint,
            )


@case("request.single", "Envoy, ORIGINAL_DST cluster", "one endpoint by default", feature="single")
async def single(probe: Probe) -> None:
    endpoints = probe.must_route(await probe.ask())
    probe.expect(len(endpoints) == 1, "one endpoint", endpoints)


@case("request.overwrite", DEST, "an endpoint header that the client sent does not survive")
async def overwrite(probe: Probe) -> None:
    spoof = probe.target.stranger
    exchange = await probe.routed(headers=((DESTINATION, spoof),), chunks=(probe.chat("Hi"),))
    probe.expect(
        spoof not in (exchange.destination or ""),
        "the picker's endpoint alone",
        exchange.destination,
    )


@case("request.route-cache", LLMD, "the answer that sets the endpoint clears the route cache")
async def route_cache(probe: Probe) -> None:
    exchange = await probe.routed()
    probe.expect(exchange.up.cleared_route_cache, "clear_route_cache: true", "false")


@case("request.get", LLMD, "a request without a body is answered at once")
async def get(probe: Probe) -> None:
    exchange = await probe.routed(method="GET", path="/v1/models", chunks=())
    told = metadata_destination(exchange)
    probe.expect(told == exchange.destination, "the same value in header and metadata", told)


@case(
    "request.waits",
    LLMD,
    "nothing is decided before the end of the body (the model is in it)",
    duplex=True,
)
async def waits(probe: Probe) -> None:
    body = probe.chat("Hello, who are you?")
    exchange = probe.open()
    await exchange.request(Request(chunks=(body[:20],), length=False, unfinished=True), wait=False)
    await exchange.linger(0.3)
    probe.expect(not exchange.replies, "no answer yet", exchange.log[-1])
    await exchange.more(body[20:])
    probe.must_route(exchange)
    probe.must_forward(exchange, body)


@case("request.body", LLMD, "an untouched body is forwarded byte by byte as it came", body=True)
async def body_identical(probe: Probe) -> None:
    text = json.dumps(probe.target.model)
    body = (
        '{ "stream_options" :{"include_usage":true},\n\t"model":' + text + ',"temperature":1.0,'
        '"messages":[{"role":"user","content":"Gr\u00fc\u00dfe \\u00fc \\/ \u65e5\u672c"}],'
        '"x":1e2,"max_tokens":4 }\r\n'
    ).encode()
    exchange = await probe.routed(chunks=(body,))
    probe.must_forward(exchange, body)


@case("request.split", HERMETIC, "a body in several chunks", duplex=True)
async def split(probe: Probe) -> None:
    body = probe.chat("Split anywhere, even inside a word or a multi-byte \u00e4.")
    for size in (len(body) // 2 + 1, 7, 1):
        exchange = await probe.routed(chunks=pieces(body, size))
        probe.must_forward(exchange, body)


@case("request.empty-end", DUPLEX, "the body's end may come in an empty chunk", duplex=True)
async def empty_end(probe: Probe) -> None:
    body = probe.chat("The end comes alone.")
    exchange = await probe.routed(chunks=(body, b""))
    probe.must_forward(exchange, body)


@case("request.large", LLMD, "a large body comes back whole", body=True, limit_s=120)
async def large(probe: Probe) -> None:
    body = probe.large(probe.target.large_bytes)
    exchange = await probe.routed(chunks=pieces(body))
    probe.must_forward(exchange, body)


@case(
    "request.pieces",
    DUPLEX,
    f"no message above {MESSAGE_BYTES} bytes on the way back",
    duplex=True,
    limit_s=120,
)
async def small_pieces(probe: Probe) -> None:
    body = probe.large(300_000)
    exchange = await probe.routed(chunks=pieces(body))
    probe.expect(
        exchange.up.largest_reply <= MESSAGE_BYTES,
        f"messages of at most {MESSAGE_BYTES} bytes",
        f"one of {exchange.up.largest_reply} bytes",
    )


@case("request.trailers", DUPLEX, "trailers end the body and are answered", duplex=True)
async def trailers(probe: Probe) -> None:
    body = probe.chat("Trailers follow.")
    exchange = await probe.routed(chunks=(body,), trailers=(("x-checksum", "1"),))
    probe.must_forward(exchange, body)
    probe.expect(
        ("x-checksum", b"1") in (exchange.up.trailers or []),
        "the trailers go upstream",
        exchange.up.trailers,
    )


@case("request.text-values", "ext_proc.proto, HeaderValue", "header values in `value` are read too")
async def text_values(probe: Probe) -> None:
    await probe.routed(text_values=True, chunks=(probe.chat("An older gateway."),))


@case(
    "request.no-length",
    "HTTP/1.1 chunked, HTTP/2",
    "a body without a content-length header",
    body=True,
)
async def no_length(probe: Probe) -> None:
    body = probe.chat("Of unknown length.")
    exchange = await probe.routed(chunks=(body,), length=False)
    probe.must_forward(exchange, body)


@case(
    "request.content-length",
    LLMD,
    "content-length is the size of what goes upstream",
    body=True,
    feature="content-length",
)
async def content_length(probe: Probe) -> None:
    exchange = await probe.routed(length=False, chunks=(probe.chat("Count me."),))
    told = exchange.upstream("content-length")
    wanted = [str(len(exchange.up.body)).encode()]
    probe.expect(told == wanted, f"content-length {wanted[0].decode()}", told)


@case("request.own-headers", LLMD, "the client's other headers go upstream as they are")
async def own_headers(probe: Probe) -> None:
    exchange = await probe.routed(
        headers=(("authorization", "Bearer k"), ("x-my-header", "a, b"), ("accept", "*/*")),
        chunks=(probe.chat("Headers"),),
    )
    for name, value in (("authorization", b"Bearer k"), ("x-my-header", b"a, b")):
        probe.expect(
            exchange.upstream(name) == [value], f"{name} unchanged", exchange.upstream(name)
        )


SYSTEM_OWNED = (
    "x-gateway-destination-endpoint-subset",
    "x-gateway-destination-endpoint-served",
    "x-llm-d-inference-fairness-id",
    "x-gateway-inference-fairness-id",
    "x-llm-d-inference-objective",
    "x-gateway-inference-objective",
    "x-llm-d-model-name-rewrite",
    "x-gateway-model-name-rewrite",
    "x-llm-d-slo-ttft-ms",
    "x-llm-d-request-dropped-reason",
)


@case("request.strip", LLMD, "system-owned request headers do not go upstream", feature="strip")
async def strip(probe: Probe) -> None:
    model = probe.target.model
    values = {"x-llm-d-model-name-rewrite": model, "x-gateway-model-name-rewrite": model}
    values["x-llm-d-slo-ttft-ms"] = "10000"
    headers = tuple((name, values.get(name, "default")) for name in SYSTEM_OWNED)
    exchange = await probe.routed(headers=headers, chunks=(probe.chat("Strip"),))
    left = [name for name in SYSTEM_OWNED if exchange.upstream(name)]
    probe.expect(not left, "none of them upstream", ", ".join(left))


@case("request.trace", "W3C Trace Context", "traceparent goes upstream valid", feature="trace")
async def trace(probe: Probe) -> None:
    sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    exchange = await probe.routed(headers=(("traceparent", sent),), chunks=(probe.chat("T"),))
    came = exchange.upstream("traceparent")
    right = len(came) == 1 and came[0].decode().split("-")[:2] == sent.split("-")[:2]
    probe.expect(right, "one traceparent of the same trace", came)


@case("request.completions", LLMD, "POST /v1/completions, prompt as text and as token ids")
async def completions(probe: Probe) -> None:
    ids = json.dumps({"model": probe.target.model, "prompt": list(range(64))}).encode()
    for body in (probe.completion("Once upon a time"), ids):
        exchange = await probe.routed(path="/v1/completions", chunks=(body,))
        if probe.target.body_mode.name not in ("NONE",):
            probe.must_forward(exchange, body)


@case("request.path-query", LLMD, "a query string does not change how a path is read")
async def path_query(probe: Probe) -> None:
    await probe.routed(path="/v1/chat/completions?trace=1", chunks=(probe.chat("Q"),))


@case("request.objective", HERMETIC, "an objective that nobody defined does not stop a request")
async def objective(probe: Probe) -> None:
    for name in ("x-llm-d-inference-objective", "x-gateway-inference-objective"):
        await probe.routed(headers=((name, "no-such-objective"),), chunks=(probe.chat("O"),))


def _api(name: str, path: str, fields: dict[str, object]) -> Case:
    @case(f"request.{name}", LLMD, f"POST {path}", feature=name, body=True)
    async def run(probe: Probe) -> None:
        body = json.dumps({"model": probe.target.model} | fields).encode()
        probe.must_forward(await probe.routed(path=path, chunks=(body,)), body)

    return run


@case(
    "request.observability",
    "ext_proc.proto, observability_mode",
    "nothing is answered when the gateway only looks on",
    feature="observability",
)
async def observability(probe: Probe) -> None:
    exchange = probe.open()
    await exchange.request(
        Request(chunks=(probe.chat("Look on."),), observability=True), wait=False
    )
    await exchange.linger(0.5)
    probe.expect(not exchange.replies, "no reply", [reply.kind for reply in exchange.replies])
    end = exchange.end
    probe.expect(end is None or end.code == 0, "no gRPC error", end)
    await probe.routed()


@case(
    "request.passthrough",
    "llm-d router, passthrough parser",
    "a body that is not JSON is forwarded to some endpoint",
    feature="passthrough",
    body=True,
)
async def passthrough(probe: Probe) -> None:
    body = (
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n'
        + probe.target.model.encode()
        + b'\r\n--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        + bytes(range(256)) * 8
        + b"\r\n--b--\r\n"
    )
    exchange = await probe.routed(
        path="/v1/audio/transcriptions",
        headers=(("content-type", "multipart/form-data; boundary=b"),),
        chunks=(body,),
    )
    probe.must_forward(exchange, body)


@case(
    "request.spread",
    "llm-d router, inflight-load-producer",
    "a burst is not herded",
    feature="spread",
    endpoints=2,
)
async def spread(probe: Probe) -> None:
    count = 8 * len(probe.target.endpoints)
    exchanges = await all_of([probe.ask(chunks=(probe.chat(f"{n} " * 200),)) for n in range(count)])
    tally: dict[str, int] = {}
    for exchange in exchanges:
        first = probe.must_route(exchange)[0]
        tally[first] = tally.get(first, 0) + 1
    probe.expect(max(tally.values()) <= count * 3 // 4, "at most 3/4 on one endpoint", tally)


@case(
    "request.prefix",
    "llm-d router, prefix-cache-scorer",
    "a long prompt that repeats goes where it went before",
    feature="prefix",
    endpoints=2,
    body=True,
)
async def prefix(probe: Probe) -> None:
    for topic in ("alpha", "beta", "gamma"):
        body = probe.chat(f"{topic} " * 3_000)
        first = await probe.routed(chunks=pieces(body))
        await first.stream.half_close()
        await asyncio.sleep(0.1)
        again = await probe.routed(chunks=pieces(body))
        probe.expect(
            again.destination == first.destination, f"again {first.destination}", again.destination
        )


_MESSAGES = {"max_tokens": 4, "messages": [{"role": "user", "content": "Say hello."}]}

CASES: tuple[Case, ...] = (
    *(header, metadata, in_pool, single, overwrite, route_cache, get, waits),
    *(body_identical, split, empty_end, large, small_pieces, trailers, text_values, no_length),
    *(content_length, own_headers, strip, trace, completions, path_query, objective),
    _api("responses-api", "/v1/responses", {"input": "Say hello."}),
    _api("messages-api", "/v1/messages", _MESSAGES),
    _api("embeddings", "/v1/embeddings", {"input": ["a", "b"]}),
    *(observability, passthrough, spread, prefix),
)
