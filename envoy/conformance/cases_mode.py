"""Request body modes other than the one the suite runs in, and the gateway suite's test headers."""

from __future__ import annotations

from warmlane.envoy.conformance.case import Case, Probe, case, pieces
from warmlane.envoy.conformance.cases_subset import hint
from warmlane.envoy.conformance.exchange import Request, Response
from warmlane.envoy.conformance.target import BodyMode

MODES = "ext_proc, ProcessingMode"
GIE = "GIE conformance suite"
SELECT = "test-epp-endpoint-selection"


def _whole(mode: BodyMode, feature: str) -> Case:
    @case(f"mode.{feature}", MODES, f"body mode {mode.name}: decided by the body", feature=feature)
    async def run(probe: Probe) -> None:
        for body in (probe.chat("Whole."), probe.large(200_000)):
            request = Request(chunks=(body,), mode=mode)
            probe.must_forward(await probe.routed(request), body)
        exchange = await probe.ask(Request(chunks=(b"no json",), mode=mode))
        probe.must_refuse(exchange, 400)

    return run


def _headers_only(mode: BodyMode, feature: str) -> Case:
    @case(f"mode.{feature}", MODES, f"body mode {mode.name}: decided by headers", feature=feature)
    async def run(probe: Probe) -> None:
        body = probe.chat("In pieces.")
        exchange = await probe.routed(Request(chunks=pieces(body, 40), mode=mode))
        if mode is BodyMode.STREAMED:
            probe.must_forward(exchange, body)
        if exchange.end is None and probe.target.phase != "none":
            await exchange.respond(Response(chunks=(b"{}",)))
            probe.must_follow(exchange)

    return run


@case(
    "mode.streamed-unwaited",
    "ext_proc, send_body_without_waiting_for_header_response",
    "body mode STREAMED, the body before the headers' answer",
    feature="streamed",
)
async def unwaited(probe: Probe) -> None:
    body = probe.chat("Not waiting.")
    exchange = await probe.routed(
        Request(chunks=pieces(body, 40), mode=BodyMode.STREAMED, unwaited=True)
    )
    probe.must_forward(exchange, body)


@case("test.selection", GIE, f"{SELECT} chooses the endpoint", feature="test-headers", endpoints=2)
async def selection(probe: Probe) -> None:
    for endpoint in probe.target.endpoints:
        for _ in range(3):
            exchange = await probe.routed(headers=((SELECT, endpoint),), chunks=(probe.chat("S"),))
            probe.expect(exchange.destination == endpoint, endpoint, exchange.destination)


@case(
    "test.selection-ip",
    GIE,
    "a bare IP allows every port of it",
    feature="test-headers",
    endpoints=1,
)
async def selection_ip(probe: Probe) -> None:
    for endpoint in probe.target.endpoints:
        address = endpoint.rpartition(":")[0]
        headers = ((SELECT, address.strip("[]")),)
        exchange = await probe.routed(headers=headers, chunks=(probe.chat("S"),))
        came = exchange.destination or ""
        probe.expect(came.rpartition(":")[0] == address, f"an endpoint of {address}", came)
    headers = ((SELECT, probe.target.stranger.rpartition(":")[0]),)
    probe.must_refuse(await probe.ask(headers=headers, chunks=(probe.chat("S"),)), 503)


@case(
    "test.selection-outranks",
    GIE,
    "the header outranks the subset of the metadata",
    feature="test-headers",
    endpoints=2,
)
async def selection_outranks(probe: Probe) -> None:
    first, second = probe.target.endpoints[:2]
    exchange = await probe.routed(
        headers=((SELECT, first),), metadata=hint([second]), chunks=(probe.chat("S"),)
    )
    probe.expect(exchange.destination == first, first, exchange.destination)


@case("test.selection-none", GIE, "nothing eligible: 503", feature="test-headers")
async def selection_none(probe: Probe) -> None:
    headers = ((SELECT, probe.target.stranger),)
    probe.must_refuse(await probe.ask(headers=headers, chunks=(probe.chat("S"),)), 503)


@case(
    "test.served",
    GIE,
    "the response tells the served endpoint in x-conformance-test-served-endpoint",
    feature="test-headers",
    endpoints=1,
    phase="headers",
)
async def served(probe: Probe) -> None:
    endpoint = probe.target.endpoints[-1]
    exchange = await probe.routed()
    if exchange.end is not None:
        probe.skip("the picker ends the stream after the request phase")
    await exchange.respond(Response(chunks=(b"{}",), served=endpoint))
    probe.must_follow(exchange)
    told = dict(exchange.down.headers).get("x-conformance-test-served-endpoint")
    probe.expect(told == endpoint.encode(), endpoint, told)


@case("test.scores", "llm-d router, --emit-endpoint-scores", "scores in metadata", feature="scores")
async def scores(probe: Probe) -> None:
    exchange = await probe.routed()
    name = "x-gateway-destination-endpoint-scores"
    found = [
        fields[name]
        for fields in exchange.metadata.values()
        if isinstance(fields, dict) and name in fields
    ]
    right = bool(found) and isinstance(found[0], dict) and bool(found[0])
    probe.expect(right, f"a struct {name}", exchange.metadata)


CASES: tuple[Case, ...] = (
    _whole(BodyMode.BUFFERED, "buffered"),
    _whole(BodyMode.BUFFERED_PARTIAL, "buffered-partial"),
    _headers_only(BodyMode.STREAMED, "streamed"),
    unwaited,
    _headers_only(BodyMode.NONE, "none"),
    *(selection, selection_ip, selection_outranks, selection_none, served, scores),
)
