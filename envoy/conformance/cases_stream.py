"""The transport: streams that end in every way in which Envoy and its clients end them."""

from __future__ import annotations

import asyncio

from warmlane.envoy.conformance import wire
from warmlane.envoy.conformance.case import Case, Probe, all_of, case, pieces
from warmlane.envoy.conformance.client import OWN_ERROR
from warmlane.envoy.conformance.exchange import Exchange, Request

PROTO = "ext_proc.proto, Process"
GRPC = "gRPC over HTTP/2"
UNIMPLEMENTED = 12
BATCH = 32
TRIES = 8


@case("stream.half-close", PROTO, "after a half-close the picker ends the stream with status 0")
async def half_close(probe: Probe) -> None:
    exchange = await probe.routed()
    await exchange.stream.half_close()
    await exchange.linger(probe.target.timeout_s)
    probe.expect(exchange.end is not None, "the stream's end", "none in time")
    assert exchange.end is not None
    probe.expect(exchange.end.code == 0, "grpc-status 0", exchange.end)


@case("stream.half-close-early", PROTO, "a half-close in mid-request ends the stream, no more")
async def half_close_early(probe: Probe) -> None:
    exchange = probe.open()
    await exchange.request(Request(chunks=(b'{"mod',), length=False, unfinished=True), wait=False)
    await exchange.stream.half_close()
    await exchange.linger(probe.target.timeout_s)
    probe.expect(exchange.end is not None, "the stream's end", "none in time")
    probe.expect(
        exchange.destination is None or probe.needs_headers_only,
        "no decision on half a body",
        exchange.destination,
    )
    await probe.routed()


@case("stream.reset", PROTO, "a stream may be reset at any point; the next request is routed")
async def reset(probe: Probe) -> None:
    body = probe.chat("Reset " * 2_000)
    for chunks, unfinished in (((b"",), True), (pieces(body)[:1], True), (pieces(body), False)):
        exchange = probe.open()
        request = Request(chunks=chunks, length=False, unfinished=unfinished)
        await exchange.request(request, wait=False)
        await exchange.stream.reset()
    await probe.routed()


@case("stream.concurrent", GRPC, "64 requests at once on one connection")
async def concurrent(probe: Probe) -> None:
    bodies = [probe.chat(f"Request {number} " * (1 + number * 7)) for number in range(64)]
    exchanges = await all_of([probe.ask(chunks=pieces(body)) for body in bodies])
    for exchange, body in zip(exchanges, bodies, strict=True):
        probe.must_route(exchange)
        if not probe.needs_headers_only:
            probe.must_forward(exchange, body)


@case(
    "stream.envoy-resets",
    "Envoy ends each stream with RST_STREAM",
    "streams that end by reset, one after the other, all on one connection",
    option="resets",
    limit_s=300,
)
async def envoy_resets(probe: Probe) -> None:
    before = probe.tunnel.connections
    body = probe.chat("Again")
    done = 0

    async def one() -> Exchange:
        exchange = probe.open()
        probe.exchanges.pop()
        await exchange.request(Request(chunks=(body,)))
        await exchange.stream.reset()
        return exchange

    while done < probe.target.resets:
        for exchange in await all_of([one() for _ in range(BATCH)]):
            try:
                probe.must_route(exchange)
            finally:
                probe.notes = [f"after {done} streams"]
        done += BATCH
    opened = probe.tunnel.connections - before
    probe.expect(opened <= 1, f"{done} streams on the same connection", f"{opened} new connections")


@case("stream.unknown-method", GRPC, "an unknown method: UNIMPLEMENTED")
async def unknown_method(probe: Probe) -> None:
    stream = probe.client.stream("/envoy.service.ext_proc.v3.ExternalProcessor/NoSuchMethod")
    exchange = probe.open(stream=stream)
    await exchange.linger(probe.target.timeout_s)
    end = exchange.end
    probe.expect(end is not None and end.code == UNIMPLEMENTED, "grpc-status 12", end)


@case("stream.garbage", GRPC, "a message that is no ProcessingRequest harms its stream alone")
async def garbage(probe: Probe) -> None:
    other = probe.open()
    await other.request(
        Request(chunks=(probe.chat("x")[:9],), length=False, unfinished=True), wait=False
    )
    for data in (b"\xff" * 40, b"\x12\x05\x0a\xff\xff\xff\x7f", b"\x0b", bytes(range(1, 200))):
        exchange = probe.open()
        await exchange.stream.send(data)
        await exchange.linger(0.2)
        if exchange.replies and exchange.immediate is None:
            probe.fail("an error, or silence", exchange.log[-1])
    probe.expect(other.end is None, "the other stream goes on", other.end)
    await probe.routed()


@case("stream.unknown-fields", "Protocol Buffers 3", "fields of a newer protocol are passed over")
async def unknown_fields(probe: Probe) -> None:
    newer = b"\xa2\x06\x05hello\xa8\x06\x07"  # field 100: bytes, field 101: a number
    exchange = probe.open()
    request = Request(method="GET", path="/v1/models")
    pairs = request.pairs()
    exchange.up.sent_headers(pairs, True)
    await exchange.stream.send(newer + wire.headers("request", pairs, end=True) + newer)
    await exchange.take(probe.target.timeout_s)
    probe.must_route(exchange)


@case("stream.gzip", "gRPC compression", "a compressed message is read, or UNIMPLEMENTED")
async def gzip(probe: Probe) -> None:
    filler = ("x-filler", "Squeeze " * 400 + "me")
    request = Request(method="GET", path="/v1/models", headers=(filler,))
    exchange = await probe.open(stream=probe.client.stream(gzip=True)).request(request)
    for _ in range(TRIES):
        # A write that meets the refusal may leave grpcio with an error of its own: ask again.
        if exchange.end is None or exchange.end.message != OWN_ERROR:
            break
        exchange = await probe.open(stream=probe.client.stream(gzip=True)).request(request)
    if exchange.end is not None and exchange.end.code:
        probe.expect(exchange.end.code == UNIMPLEMENTED, "grpc-status 12", exchange.end)
    else:
        probe.must_route(exchange)
    await probe.routed()


@case("stream.idle", PROTO, "a stream that says nothing disturbs nobody")
async def idle(probe: Probe) -> None:
    silent = [probe.open() for _ in range(16)]
    await asyncio.sleep(0.2)
    await probe.routed()
    probe.expect(all(not item.replies for item in silent), "silence", "a reply to nothing")


@case("stream.tls", "Envoy AI Gateway, picker cluster", "TLS with ALPN h2")
async def tls(probe: Probe) -> None:
    await probe.routed()
    if probe.target.tls == "none":
        probe.skip("--plaintext")
    probe.expect(probe.tunnel.alpn == "h2", "ALPN protocol h2", probe.tunnel.alpn)


CASES: tuple[Case, ...] = (
    *(half_close, half_close_early, reset, concurrent, unknown_method, garbage, unknown_fields),
    *(gzip, idle, tls, envoy_resets),
)
