"""Refusals: which status, in which shape, and that nothing follows."""

from __future__ import annotations

import json

from warmlane.envoy.conformance.case import Case, Probe, case, refusal
from warmlane.envoy.conformance.cases_subset import hint
from warmlane.envoy.conformance.exchange import Exchange

ERRORS = "llm-d router, error mapping"
HERMETIC = "llm-d router, hermetic suite"
IMMEDIATE = "ext_proc.proto, ImmediateResponse"
DROPPED = "x-llm-d-request-dropped-reason"


@case("error.not-json", HERMETIC, "a body that is not JSON: 400", body=True)
async def not_json(probe: Probe) -> None:
    for body in (b"no healthy upstream", b'{"model": "x"', b'{"model" "x"}', b"\xff\xfe{}"):
        probe.must_refuse(await probe.ask(chunks=(body,)), 400)


@case("error.not-object", ERRORS, "JSON that is not an object: 400", body=True)
async def not_object(probe: Probe) -> None:
    for body in (b"[]", b'"text"', b"null", b"1"):
        probe.must_refuse(await probe.ask(chunks=(body,)), 400)


@case("error.no-model", HERMETIC, "no model: 400", body=True, feature="model-required")
async def no_model(probe: Probe) -> None:
    body = b'{"messages":[{"role":"user","content":"hello world"}]}'
    probe.must_refuse(await probe.ask(chunks=(body,)), 400)


@case(
    "error.model-type",
    ERRORS,
    "a model that is not a string: 400",
    body=True,
    feature="model-required",
)
async def model_type(probe: Probe) -> None:
    for model in (7, ["a"], {"a": 1}):
        body = json.dumps({"model": model, "messages": []}).encode()
        probe.must_refuse(await probe.ask(chunks=(body,)), 400)


@case("error.empty-body", ERRORS, "an empty body: 400", body=True, feature="empty-body")
async def empty_body(probe: Probe) -> None:
    probe.must_refuse(await probe.ask(chunks=(b"",)), 400)


@case("error.unknown-path", ERRORS, "no parser for the path: 400", feature="strict-paths")
async def unknown_path(probe: Probe) -> None:
    body = probe.chat("Hello")
    probe.must_refuse(await probe.ask(path="/v1/no/such/thing", chunks=(body,)), 400, 404)


@case(
    "error.unknown-model",
    ERRORS,
    "a model that no pool serves: 404",
    body=True,
    feature="unknown-model",
)
async def unknown_model(probe: Probe) -> None:
    body = json.dumps({"model": "no-such-model-here", "messages": []}).encode()
    probe.must_refuse(await probe.ask(chunks=(body,)), 404)


async def _refused(probe: Probe) -> Exchange:
    """Any refusal that every picker must know: an empty subset."""
    exchange = await probe.ask(chunks=(probe.chat("Refuse me"),), metadata=hint([]))
    probe.must_refuse(exchange, 503)
    return exchange


@case("error.last", IMMEDIATE, "nothing follows an immediate response")
async def last(probe: Probe) -> None:
    exchange = await _refused(probe)
    await exchange.linger(0.3)
    if exchange.broken:
        probe.fail("no further message", "; ".join(exchange.broken))
    end = exchange.end
    probe.expect(end is None or end.code == 0, "grpc-status 0, or no end yet", end)


@case("error.no-endpoint", IMMEDIATE, "a refusal names no endpoint")
async def no_endpoint(probe: Probe) -> None:
    exchange = await _refused(probe)
    probe.expect(exchange.destination is None, "no endpoint header", exchange.destination)
    probe.expect(not exchange.metadata.get("envoy.lb"), "no envoy.lb metadata", exchange.metadata)


@case("error.body", IMMEDIATE, "a refusal has a body for people")
async def body_text(probe: Probe) -> None:
    exchange = await _refused(probe)
    assert exchange.immediate is not None
    probe.expect(bool(exchange.immediate.body), "a body", "none")


def _openai(probe: Probe, exchange: Exchange) -> None:
    reply = exchange.immediate
    assert reply is not None
    try:
        error = json.loads(reply.body or b"")["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        probe.fail('{"error": {"message", "type", "code"}}', refusal(exchange))
    right = isinstance(message, str) and {"type", "code"} <= error.keys()
    probe.expect(right, '{"error": {"message", "type", "code"}}', refusal(exchange))
    kind = reply.header("content-type") or b""
    probe.expect(kind.startswith(b"application/json"), "content-type: application/json", kind)


@case("error.openai", "OpenAI API, errors", "a refusal is an error object", feature="openai-errors")
async def openai(probe: Probe) -> None:
    _openai(probe, await _refused(probe))
    if not probe.needs_headers_only:
        exchange = await probe.ask(chunks=(b"{",))
        probe.must_refuse(exchange, 400)
        _openai(probe, exchange)


@case(
    "error.retry-after", "RFC 9110, 10.2.3", "a 503 says when to come back", feature="retry-after"
)
async def retry_after(probe: Probe) -> None:
    exchange = await _refused(probe)
    assert exchange.immediate is not None
    told = exchange.immediate.header("retry-after") or b""
    probe.expect(told.isdigit() and int(told) > 0, "retry-after: seconds", told)


@case(
    "error.conditional",
    ERRORS,
    "`Prefer: if-available` and nothing cached: 412",
    feature="conditional-decode",
)
async def conditional(probe: Probe) -> None:
    body = probe.chat("Never sent before: zyxwvu " * 400)
    exchange = await probe.ask(headers=(("prefer", "if-available"),), chunks=(body,))
    probe.must_refuse(exchange, 412)


@case("error.after", ERRORS, "after a refusal the next request is routed")
async def after(probe: Probe) -> None:
    await _refused(probe)
    await probe.routed()


CASES: tuple[Case, ...] = (
    *(not_json, not_object, no_model, model_type, empty_body, unknown_path, unknown_model),
    *(last, no_endpoint, body_text, openai, retry_after, conditional, after),
)
