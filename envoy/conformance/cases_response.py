"""The response phase: everything comes back unchanged, in order, and in time."""

from __future__ import annotations

import json

from warmlane.envoy.conformance.case import Case, Probe, case, difference, pieces
from warmlane.envoy.conformance.exchange import Exchange, Request, Response
from warmlane.envoy.conformance.rules import MESSAGE_BYTES

DUPLEX = "ext_proc, FULL_DUPLEX_STREAMED"
HERMETIC = "llm-d router, hermetic suite"
SERVED = "EPP protocol, Destination Endpoint Served"
USAGE = {"prompt_tokens": 7, "total_tokens": 17, "completion_tokens": 10}


def _answer(probe: Probe, text: str = "Hi.") -> bytes:
    """A chat completion as an engine writes it."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": probe.target.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
    return json.dumps(body, ensure_ascii=False).encode()


def _events(probe: Probe) -> tuple[bytes, ...]:
    """A stream of events, the usage in the last but one."""
    head = {"id": "c", "object": "chat.completion.chunk", "model": probe.target.model}
    texts = ("", "Hel", "lo", " \u00e4", "!")
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    last = b"data: " + json.dumps(head | {"choices": [], "usage": USAGE}).encode() + b"\n\n"
    texts_out = [json.dumps(head | chunk, ensure_ascii=False) for chunk in chunks]
    events = [f"data: {text}\n\n".encode() for text in texts_out]
    return (*events, last + b"data: [DONE]\n\n")


async def _answered(probe: Probe, response: Response, request: Request | None = None) -> Exchange:
    """A routed request, then this response; a picker that closed the stream cleanly is done."""
    exchange = await probe.routed(request)
    if exchange.end is None:
        await exchange.respond(response)
    if exchange.immediate is not None:
        probe.fail("a response that passes", f"immediate response {exchange.immediate.status}")
    probe.must_follow(exchange)
    return exchange


def _must_return(probe: Probe, exchange: Exchange, body: bytes) -> None:
    """The body reaches the client whole. After a clean close Envoy passes the rest itself."""
    if exchange.end is not None or probe.target.phase == "headers":
        return
    came = bytes(exchange.down.body)
    probe.expect(came == body, f"the response body ({len(body)} bytes)", difference(body, came))


@case(
    "response.headers", "ext_proc.proto", "response headers are answered at once", phase="headers"
)
async def headers(probe: Probe) -> None:
    exchange = await _answered(probe, Response(status=204, headers=()))
    if exchange.end is None:
        probe.expect(exchange.down.headers_answered, "an answer", exchange.log[-1])


@case("response.json", HERMETIC, "a JSON body in one and in several chunks", phase="headers")
async def json_body(probe: Probe) -> None:
    body = _answer(probe)
    for size in (len(body), 50, 3):
        exchange = await _answered(probe, Response(chunks=pieces(body, size)))
        _must_return(probe, exchange, body)


@case("response.invalid-json", HERMETIC, "a body that is not JSON passes", phase="headers")
async def invalid(probe: Probe) -> None:
    body = b"no healthy upstream"
    _must_return(probe, await _answered(probe, Response(chunks=(body,))), body)


@case("response.empty-end", HERMETIC, "the end may come in an empty chunk", phase="headers")
async def empty_end(probe: Probe) -> None:
    body = _answer(probe)
    _must_return(probe, await _answered(probe, Response(chunks=(body, b""))), body)


@case("response.no-body", DUPLEX, "an empty body", phase="headers")
async def no_body(probe: Probe) -> None:
    _must_return(probe, await _answered(probe, Response(chunks=(b"",))), b"")


EVENT_STREAM = (("content-type", "text/event-stream; charset=utf-8"),)


@case("response.sse", HERMETIC, "events pass as they come, usage in the last", phase="headers")
async def sse(probe: Probe) -> None:
    events = _events(probe)
    request = Request(chunks=(probe.chat("Stream", stream=True),))
    response = Response(headers=EVENT_STREAM, chunks=events, step=True)
    exchange = await _answered(probe, response, request)
    _must_return(probe, exchange, b"".join(events))


@case("response.sse-cut", HERMETIC, "events cut anywhere pass unchanged", phase="headers")
async def sse_cut(probe: Probe) -> None:
    body = b"".join(_events(probe))
    request = Request(chunks=(probe.chat("Stream", stream=True),))
    for size in (17, 1):
        response = Response(headers=EVENT_STREAM, chunks=pieces(body, size))
        _must_return(probe, await _answered(probe, response, request), body)


@case("response.large", DUPLEX, "a large body, re-chunked and whole", phase="headers", limit_s=120)
async def large(probe: Probe) -> None:
    body = _answer(probe, "x" * 400_000)
    exchange = await _answered(probe, Response(chunks=pieces(body)))
    _must_return(probe, exchange, body)
    largest = exchange.down.largest_reply
    probe.expect(
        largest <= MESSAGE_BYTES,
        f"messages of at most {MESSAGE_BYTES} bytes",
        f"one of {largest} bytes",
    )


@case("response.trailers", "ext_proc.proto", "response trailers are answered", phase="headers")
async def trailers(probe: Probe) -> None:
    body = _answer(probe)
    response = Response(chunks=(body,), trailers=(("grpc-status", "0"),))
    exchange = await _answered(probe, response)
    _must_return(probe, exchange, body)
    if exchange.end is None:
        pair = ("grpc-status", b"0")
        probe.expect(
            pair in (exchange.down.trailers or []), "the trailers pass", exchange.down.trailers
        )


@case("response.error", "HTTP", "an engine's error passes unchanged", phase="headers")
async def error(probe: Probe) -> None:
    body = b'{"error":{"message":"boom","type":"internal_error","code":500}}'
    for status in (400, 429, 500, 503):
        exchange = await _answered(probe, Response(status=status, chunks=(body,)))
        _must_return(probe, exchange, body)
        told = dict(exchange.down.headers).get(":status")
        if exchange.end is None:
            probe.expect(told == str(status).encode(), f":status {status}", told)


@case(
    "response.served", SERVED, "the endpoint that really served is taken note of", phase="headers"
)
async def served(probe: Probe) -> None:
    others = [*probe.target.endpoints, probe.target.stranger, "", "not an endpoint"]
    for endpoint in others:
        body = _answer(probe)
        exchange = await _answered(probe, Response(chunks=(body,), served=endpoint))
        _must_return(probe, exchange, body)


@case(
    "response.aborted", "ext_proc.proto", "a client that goes away in mid-response", phase="headers"
)
async def aborted(probe: Probe) -> None:
    exchange = await probe.routed()
    if exchange.end is None:
        await exchange.respond(
            Response(headers=EVENT_STREAM, chunks=_events(probe)[:2], unfinished=True)
        )
    await exchange.stream.reset()
    await probe.routed()


@case(
    "response.session-token",
    "llm-d router, session-affinity",
    "a token of the response brings the next request to the same endpoint",
    feature="session-token",
    endpoints=2,
    phase="headers",
)
async def session_token(probe: Probe) -> None:
    exchange = await _answered(probe, Response(chunks=(_answer(probe),)))
    tokens = [value for name, value in exchange.down.headers if name == "x-session-token"]
    probe.expect(len(tokens) == 1, "one x-session-token", tokens)
    for number in range(4):
        again = await probe.routed(
            headers=(("x-session-token", tokens[0].decode()),),
            chunks=(probe.chat(f"other {number} " * 100),),
        )
        probe.expect(
            again.destination == exchange.destination,
            f"{exchange.destination} again",
            again.destination,
        )


@case(
    "response.cost",
    "llm-d router, request-attribute-reporter",
    "usage becomes dynamic metadata at the end of the response",
    feature="cost",
    phase="full",
)
async def cost(probe: Probe) -> None:
    exchange = await _answered(probe, Response(chunks=(_answer(probe),)))
    held = exchange.metadata.get("envoy.lb")
    found = held.get("x-gateway-inference-request-cost") if isinstance(held, dict) else None
    probe.expect(found is not None, "envoy.lb/x-gateway-inference-request-cost", held)


CASES: tuple[Case, ...] = (
    *(headers, json_body, invalid, empty_end, no_body, sse, sse_cut, large, trailers, error),
    *(served, aborted, session_token, cost),
)
