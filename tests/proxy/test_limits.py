"""Bounds, time-outs of the client's side, back-pressure, large bodies, draining."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from .engine import (
    DONE,
    GOOD,
    LAST,
    SSE_HEAD,
    STREAM,
    Engine,
    Out,
    Seen,
    answer_body,
    chat_body,
    chunk,
    event,
    hangs,
    head,
    says,
    streams,
    whole,
)
from .rig import get, post, rig

MB = 2**20
FORM = 'multipart/form-data; boundary="b"'


def form(size: int) -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
    start = part % b"model" + b"m\r\n" + part % b"file"
    return start + bytes(range(256)) * (size // 256) + b"\r\n--b--\r\n"


async def test_head_limit() -> None:
    async with rig(GOOD, limits={"head_bytes": 2048}) as running:
        reply = await running.ask(get("/", "X-A: " + "a" * 4096), "GET")
        assert reply.status == 431
        reply = await running.ask(get("/", "X-A: " + "a" * 1024), "GET")
        assert reply.status == 200
        peer = await running.connect()
        await peer.send(b"GET / HTTP/1.1\r\nX-A: " + b"a" * 4096)
        assert (await peer.reply("GET")).status == 431
        assert running.router.metrics.counts["warmlane_limits_reached_total"] == {
            ("head_bytes",): 2
        }


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_limit(chunked: bool) -> None:
    async with rig(GOOD, limits={"body_bytes": 10_000}) as running:
        for size, status in ((9_900, 200), (10_500, 413)):
            body = chat_body(pad="x" * (size - len(chat_body(pad=""))))
            request = post(body)
            if chunked:
                mark = b"Content-Length: %d" % len(body)
                request = request[: -len(body)].replace(mark, b"Transfer-Encoding: chunked")
                request += chunk(body[:5000], body[5000:]) + LAST
            reply = await running.ask(request)
            assert reply.status == status
        assert running.router.metrics.counts["warmlane_limits_reached_total"] == {
            ("body_bytes",): 1
        }
        assert len(running.seen) == 1


async def test_all_buffered_bodies_together_are_bounded() -> None:
    async with rig(GOOD, limits={"buffered_bytes": 100_000}) as running:
        start = post(b"").replace(b"Content-Length: 0", b"Content-Length: 80000")
        first, second = await running.connect(), await running.connect()
        await first.send(start + b"{" * 70_000)
        await asyncio.sleep(0.05)
        await second.send(start + b"{" * 70_000)
        assert (await second.reply()).status == 503
        first.close()


async def test_connection_limit() -> None:
    async with rig(GOOD, limits={"connections": 2}) as running:
        kept = [await running.connect() for _ in range(2)]
        for peer in kept:
            await peer.send(post(chat_body()))
            assert (await peer.reply()).status == 200
        third = await running.connect()
        assert (await third.reply()).status == 503
        third.close()
        kept[0].close()
        await asyncio.sleep(0.05)
        assert (await running.chat()).status == 200
        assert running.count("limits_reached_total") == 1


async def test_inflight_limit() -> None:
    free = asyncio.Event()

    async def waits(seen: Seen, out: Out) -> None:
        await free.wait()
        await GOOD(seen, out)

    async with rig(waits, limits={"inflight": 2}) as running:
        waiting = [asyncio.ensure_future(running.chat()) for _ in range(2)]
        while running.proxy.inflight < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        reply = await running.chat()
        assert reply.status == 503
        assert reply.header(b"retry-after") == b"1"
        free.set()
        assert [each.status for each in await asyncio.gather(*waiting)] == [200, 200]
        assert (await running.chat()).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HT",
        get("/")[:-2],
        post(b"x" * 50)[:-10],
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
async def test_slow_requests_time_out(data: bytes) -> None:
    async with rig(GOOD, timeouts={"head_s": 0.2}) as running:
        peer = await running.connect()
        await peer.send(data)
        reply = await peer.reply()
        assert reply.status == 408
        assert await peer.at_end() == b""


async def test_dripping_head_times_out_although_bytes_arrive() -> None:
    async with rig(GOOD, timeouts={"head_s": 0.3}) as running:
        peer = await running.connect()
        task = asyncio.ensure_future(peer.reply())
        for byte in get("/", "X-A: " + "a" * 200):
            if task.done():
                break
            peer.writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        assert (await task).status == 408


async def test_idle_and_silent_connections_close_without_words() -> None:
    async with rig(GOOD, timeouts={"head_s": 0.2, "client_keepalive_s": 0.2}) as running:
        silent, idle = await running.connect(), await running.connect()
        await idle.send(post(chat_body()))
        assert (await idle.reply()).status == 200
        assert await silent.at_end() == b""
        assert await idle.at_end() == b""


async def test_large_bodies_both_ways_with_a_slow_reader() -> None:
    sent = 8 * MB
    answer = hashlib.sha256().digest() * (sent // 32)
    raw = head(200, f"content-length: {sent}", "content-type: application/octet-stream")
    engine = Engine(says(raw, answer))
    async with rig(engine, limits={"write_buffer_bytes": 65_536}) as running:
        body = chat_body(pad="x" * sent)
        peer = await running.connect(limit=16_384)
        await peer.send(post(body, "/v1/files"))
        client = next(iter(running.proxy.state.clients))
        peak = 0
        got = bytearray()
        await asyncio.sleep(0.5)
        # Nothing is read yet: the answer stops in the sockets and in one bounded buffer.
        assert client.transport.get_write_buffer_size() < MB
        while len(got) < sent:
            got += await peer.reader.read(100_000)
            peak = max(peak, client.transport.get_write_buffer_size())
            if len(got) < MB:
                await asyncio.sleep(0.002)
            if got.startswith(b"HTTP") and b"\r\n\r\n" in got:
                del got[: got.index(b"\r\n\r\n") + 4]
        assert bytes(got) == answer
        assert peak < MB
        assert engine.seen[0].body == body


async def test_slow_reader_of_a_stream_holds_the_replica_back() -> None:
    pad = chunk(event("y" * 20_000))
    produced = 0

    async def fast(seen: Seen, out: Out) -> None:
        nonlocal produced
        await out.send(SSE_HEAD)
        for _ in range(1500):
            await out.send(pad)
            produced += 1
        await out.send(chunk(DONE) + LAST)

    async with rig(fast, limits={"write_buffer_bytes": 65_536}) as running:
        peer = await running.connect(limit=16_384)
        await peer.send(post(chat_body(stream=True)))
        await asyncio.sleep(1.0)
        assert produced < 1200
        data = b""
        size = 0
        while not data.endswith(DONE + b"\r\n" + LAST):
            more = await peer.reader.read(1 << 20)
            assert more
            data = data[-100:] + more
            size += len(more)
        assert size > 1500 * 20_000


async def test_stalled_reader_is_cut_and_the_replica_not_blamed() -> None:
    async def fast(seen: Seen, out: Out) -> None:
        await out.send(SSE_HEAD)
        while True:
            await out.send(chunk(event("y" * 20_000)))

    async with rig(
        fast, timeouts={"idle_s": 0.3}, limits={"write_buffer_bytes": 65_536}
    ) as running:
        peer = await running.connect(limit=16_384)
        await peer.send(post(chat_body(stream=True)))
        await running.busy()
        await running.settled()
        assert running.count("client_gone_total") == 1
        assert running.count("streams_broken_total") == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_forms_stream_through(chunked: bool) -> None:
    body = form(3 * MB)
    request = post(body, "/v1/audio/transcriptions").replace(b"application/json", FORM.encode())
    if chunked:
        mark = b"Content-Length: %d" % len(body)
        pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
        request = request[: -len(body)].replace(mark, b"Transfer-Encoding: chunked")
        request += chunk(*pieces) + LAST
    async with rig(GOOD, limits={"body_bytes": MB}) as running:
        peer = await running.connect()
        await peer.send(request)
        reply = await peer.reply()
        assert reply.body == answer_body()
        assert running.seen[0].body == body
        assert await peer.at_end() == b""
        await running.settled()


async def test_large_form_is_held_back_by_a_slow_replica() -> None:
    read = asyncio.Event()

    class Slow(Engine):
        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read.wait()
            await super()._serve(reader, writer)

    body = form(30 * MB)
    request = post(body, "/v1/audio/transcriptions").replace(b"application/json", FORM.encode())
    async with rig(Slow(GOOD), limits={"body_bytes": MB}) as running:
        peer = await running.connect()
        sending = asyncio.ensure_future(peer.send(request))
        await asyncio.sleep(0.5)
        assert not sending.done()
        upstream = next(iter(running.proxy.state.links.connections))
        assert upstream.transport.get_write_buffer_size() < 2 * MB
        read.set()
        await sending
        assert (await peer.reply()).status == 200
        assert running.seen[0].body == body


async def test_large_form_moves_only_while_nothing_was_sent() -> None:
    body = form(2 * MB)
    request = post(body, "/v1/audio/transcriptions").replace(b"application/json", FORM.encode())
    dead = Engine()
    dead.port = 1  # nobody listens on tcpmux
    pool = {"policy": "round-robin"}  # in turn: exactly one of the two meets the dead one first
    async with rig(dead, Engine(GOOD), limits={"body_bytes": MB}, pool=pool) as running:
        for _ in range(2):
            assert (await running.ask(request)).status == 200
        assert running.count("retries_total") == 1


async def test_large_form_answered_early() -> None:
    class Refuses(Engine):
        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(whole(b'{"error":{"message":"too large"}}', 413))
            await writer.drain()
            while await reader.read(65536):
                pass
            writer.close()

    body = form(8 * MB)
    request = post(body, "/v1/audio/transcriptions").replace(b"application/json", FORM.encode())
    async with rig(Refuses(), limits={"body_bytes": MB}) as running:
        peer = await running.connect()
        sending = asyncio.ensure_future(peer.send(request))
        reply = await peer.reply()
        assert reply.status == 413
        assert reply.header(b"connection") == b"close"
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_large_body_that_is_no_form_is_refused_at_once() -> None:
    async with rig(GOOD, limits={"body_bytes": MB}) as running:
        peer = await running.connect()
        await peer.send(post(b"").replace(b"Content-Length: 0", b"Content-Length: 2000000"))
        assert (await peer.reply()).status == 413


async def test_drain_finishes_streams_and_refuses_connections() -> None:
    async with rig(streams(*STREAM, pause=0.05)) as running:
        busy, idle = await running.connect(), await running.connect()
        await idle.send(get("/health"))
        await idle.reply("GET")
        await busy.send(post(chat_body(stream=True)))
        await busy.reply(until=b"one")
        draining = asyncio.ensure_future(running.proxy.drain(5.0))
        assert await idle.at_end() == b""
        with pytest.raises(OSError):
            await running.connect()
        rest = await busy.at_end()
        assert DONE in rest
        assert await draining is True


async def test_drain_gives_up_and_close_cuts() -> None:
    async with rig(hangs) as running:
        peer = await running.connect()
        await peer.send(post(chat_body()))
        await running.busy()
        assert await running.proxy.drain(0.2) is False
        await running.proxy.close()
        assert running.router.open_tickets == 0


async def test_answers_while_draining_say_close() -> None:
    free = asyncio.Event()

    async def waits(seen: Seen, out: Out) -> None:
        await free.wait()
        await GOOD(seen, out)

    async with rig(waits) as running:
        peer = await running.connect()
        await peer.send(post(chat_body()))
        await running.busy()
        draining = asyncio.ensure_future(running.proxy.drain(5.0))
        await asyncio.sleep(0.05)
        free.set()
        reply = await peer.reply()
        assert reply.header(b"connection") == b"close"
        assert await draining is True
