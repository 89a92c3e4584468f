"""HTTP/1.1 on the client's side: framing, pipelining, refusals."""

from __future__ import annotations

import asyncio

import pytest

from .engine import (
    GOOD,
    LAST,
    Engine,
    Out,
    Seen,
    answer_body,
    chat_body,
    chunk,
    head,
    says,
    whole,
)
from .rig import get, post, rig

START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = chat_body()

REFUSED = {
    "length and coding": (
        START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "coding and length": (
        START + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (START + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    "two equal lengths": (START + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
    "list of lengths": (START + b"Content-Length: 2, 2\r\n\r\n{}", 400),
    "signed length": (START + b"Content-Length: +2\r\n\r\n{}", 400),
    "negative length": (START + b"Content-Length: -2\r\n\r\n{}", 400),
    "hex length": (START + b"Content-Length: 0x2\r\n\r\n{}", 400),
    "empty length": (START + b"Content-Length: \r\n\r\n{}", 400),
    "blank inside a length": (START + b"Content-Length: 1 2\r\n\r\n{}", 400),
    "huge length": (START + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
    "two codings": (
        START + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    "unknown coding": (START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "gzip and chunked": (START + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked and identity": (START + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "quoted coding": (START + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    "vertical tab in coding": (START + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "blank before colon": (START + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "tab before colon": (START + b"X-A\t: b\r\n\r\n", 400),
    "folded header": (START + b"X-A: b\r\n c: d\r\n\r\n", 400),
    "folded with tab": (START + b"X-A: b\r\n\tc: d\r\n\r\n", 400),
    "folded first header": (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    "bare line feed after header": (START + b"X-A: b\nX-B: c\r\n\r\n", 400),
    "bare line feeds only": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare line feed after the request line": (b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
    "bare carriage return in value": (START + b"X-A: b\rX-B: c\r\n\r\n", 400),
    "NUL in value": (START + b"X-A: b\x00c\r\n\r\n", 400),
    "NUL in name": (START + b"X\x00A: b\r\n\r\n", 400),
    "NUL in target": (b"GET /a\x00b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "control character in value": (START + b"X-A: b\x08c\r\n\r\n", 400),
    "DEL in value": (START + b"X-A: b\x7f\r\n\r\n", 400),
    "empty name": (START + b": b\r\n\r\n", 400),
    "no colon": (START + b"X-A\r\n\r\n", 400),
    "bracket in name": (START + b"X[A]: b\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "two blanks": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "two blanks before version": (b"GET /  HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "blank after version": (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
    "tab in request line": (b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "lower-case method": (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "unknown method": (b"SMUGGLE / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "other scheme": (b"GET ftp://a/b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target without slash": (b"GET abc HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 400),
    "lower-case protocol": (b"GET / http/1.1\r\nHost: x\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "coding in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
    "Upgrade": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        501,
    ),
    "Upgrade without Connection": (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n", 501),
    "chunk size with sign": (CHUNKED + b"+2\r\n{}\r\n0\r\n\r\n", 400),
    "chunk size with 0x": (CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n", 400),
    "chunk size with underscore": (CHUNKED + b"1_0\r\n{}\r\n0\r\n\r\n", 400),
    "chunk size with leading blank": (CHUNKED + b" 2\r\n{}\r\n0\r\n\r\n", 400),
    "empty chunk size": (CHUNKED + b"\r\n{}\r\n0\r\n\r\n", 400),
    "huge chunk size": (CHUNKED + b"fffffffffffffffff\r\n{}", 400),
    "chunk size line with bare LF": (CHUNKED + b"2\n{}\r\n0\r\n\r\n", 400),
    "chunk longer than its size": (CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n", 400),
    "chunk data ends with bare LF": (CHUNKED + b"2\r\n{}\n0\r\n\r\n", 400),
    "chunk extension with NUL": (CHUNKED + b"2;a=\x00\r\n{}\r\n0\r\n\r\n", 400),
    "chunk extension with bare CR": (CHUNKED + b"2;a\rb\r\n{}\r\n0\r\n\r\n", 400),
    "endless chunk extension": (CHUNKED + b"2;" + b"a" * 1000, 400),
    "trailer without colon": (CHUNKED + b"2\r\n{}\r\n0\r\nabc\r\n\r\n", 400),
    "folded trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nA: b\r\n c\r\n\r\n", 400),
    "trailer with bare LF": (CHUNKED + b"2\r\n{}\r\n0\r\nA: b\nC: d\r\n\r\n", 400),
    "endless trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nA: " + b"b" * 10_000, 400),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("step", [0, 1], ids=["whole", "bytewise"])
async def test_ambiguous_or_malformed_requests_are_refused(name: str, step: int) -> None:
    data, status = REFUSED[name]
    smuggled = get("/smuggled")
    async with rig(GOOD) as running:
        peer = await running.connect()
        if step:
            for at in range(0, len(data), 1 + len(data) // 200):
                await peer.send(data[at : at + 1 + len(data) // 200])
                await asyncio.sleep(0)
        else:
            await peer.send(data + smuggled)
        reply = await peer.reply()
        assert reply.status == status, reply
        assert reply.json["error"]["message"]
        assert reply.header(b"connection") == b"close"
        assert await peer.at_end() == b""
        assert running.seen == []
        assert running.count("rejected_total") == 1


async def test_answer_to_a_refusal_arrives_although_more_is_being_sent() -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        await peer.send(START + b"Content-Length: 999999999\r\n\r\n")
        reply = await peer.reply()
        assert reply.status == 413
        for _ in range(20):
            await peer.send(b"x" * 10_000)
        assert await peer.at_end() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n" + post(BODY),
        CHUNKED
        + b"5;name=value\r\n"
        + BODY[:5]
        + b"\r\n"
        + b"%X ; a\r\n" % len(BODY[5:])
        + BODY[5:]
        + b"\r\n"
        + LAST,
        CHUNKED + b"0005\r\n" + BODY[:5] + b"\r\n" + chunk(BODY[5:]) + b"0\r\nX-A: b\r\n\r\n",
        post(BODY).replace(b"Host: router.test", b"hOsT:router.test"),
        post(BODY).replace(b"Host: router.test", b"Host:\t router.test \t"),
        post(BODY).replace(b"Host: router.test", b"Host:"),
    ],
)
@pytest.mark.parametrize("step", [0, 1, 13])
async def test_unusual_but_valid_requests(data: bytes, step: int) -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        for at in range(0, len(data), step or len(data)):
            await peer.send(data[at : at + (step or len(data))])
            await asyncio.sleep(0)
        reply = await peer.reply()
        assert reply.status == 200
        assert running.seen[0].body == BODY


async def test_keep_alive_reuses_both_connections() -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        for _ in range(5):
            await peer.send(post(BODY))
            assert (await peer.reply()).status == 200
        assert running.engines[0].connections == 1
        assert len(running.seen) == 5


async def test_connection_close_is_honoured() -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        await peer.send(post(BODY, close=True))
        reply = await peer.reply()
        assert reply.status == 200
        assert reply.header(b"connection") == b"close"
        assert await peer.at_end() == b""


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def script(seen: object, out: object) -> None:
        number = seen.head.split(b" ")[1]  # type: ignore[attr-defined]
        await asyncio.sleep(0.02 if number == b"/0" else 0)
        await out.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(number), number))  # type: ignore[attr-defined]

    async with rig(script, script) as running:
        peer = await running.connect()
        requests = [get(f"/{n}") if n % 2 else post(b"{}", f"/{n}") for n in range(20)]
        await peer.send(b"".join(requests))
        for n in range(20):
            reply = await peer.reply("GET")
            assert reply.body == b"/%d" % n


async def test_two_requests_cut_anywhere() -> None:
    bodies = [chat_body(user="a" * 90), chat_body(user="b" * 300)]
    data = post(bodies[0]) + post(bodies[1])
    cuts = range(1, len(data), 23)
    async with rig(GOOD) as running:
        peer = await running.connect()
        for cut in cuts:
            await peer.send(data[:cut])
            await asyncio.sleep(0.002)
            await peer.send(data[cut:])
            for _ in bodies:
                assert (await peer.reply()).body == answer_body()
        assert [seen.body for seen in running.seen] == bodies * len(cuts)


async def test_pipelined_local_answers_do_not_recurse() -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        await peer.send(get("/health") * 2000)
        for _ in range(2000):
            assert (await peer.reply("GET")).status == 200


async def test_pipelining_is_bounded() -> None:
    free = asyncio.Event()

    async def waits(seen: Seen, out: Out) -> None:
        await free.wait()
        await GOOD(seen, out)

    engine = Engine(waits)
    async with rig(engine, limits={"head_bytes": 4096}) as running:
        peer = await running.connect()
        await peer.send(post(BODY))
        await asyncio.wait_for(engine.arrived.wait(), 5)
        big = get("/x") * 20_000
        with pytest.raises(TimeoutError):
            for _ in range(100):
                await asyncio.wait_for(peer.send(big), 0.2)
        assert running.count("limits_reached_total") == 1
        free.set()
        assert (await peer.reply()).status == 200
        assert (await peer.reply("GET")).status == 200


async def test_error_behind_a_pipelined_request_waits_its_turn() -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        await peer.send(post(BODY) + b"BAD\r\n\r\n")
        assert (await peer.reply()).status == 200
        assert (await peer.reply()).status == 400


async def test_expect_100_continue() -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        request = post(BODY, extra=["Expect: 100-continue"])
        await peer.send(request[: -len(BODY)])
        assert await peer.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await peer.send(BODY)
        assert (await peer.reply()).status == 200
        assert running.seen[0].values(b"expect") == []


async def test_no_100_when_the_body_is_there_or_too_large() -> None:
    async with rig(GOOD, limits={"body_bytes": 1000}) as running:
        peer = await running.connect()
        await peer.send(post(BODY, extra=["Expect: 100-continue"]))
        reply = await peer.reply()
        assert reply.raw.startswith(b"HTTP/1.1 200")
        await peer.send(START + b"Content-Length: 2000\r\nExpect: 100-continue\r\n\r\n")
        reply = await peer.reply()
        assert reply.raw.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("chunked", [False, True])
async def test_bytewise_request(chunked: bool) -> None:
    data = CHUNKED + chunk(BODY) + LAST if chunked else post(BODY)
    async with rig(GOOD) as running:
        peer = await running.connect()
        for at in range(len(data)):
            peer.writer.write(data[at : at + 1])
            await asyncio.sleep(0)
        reply = await peer.reply()
        assert reply.body == answer_body()
        assert running.seen[0].body == BODY


async def test_junk_behind_an_answer_never_reaches_a_client() -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstole"

    async with rig(says(whole(b"ok") + evil)) as running:
        peer = await running.connect()
        for _ in range(2):
            await peer.send(get("/a"))
            reply = await peer.reply("GET")
            assert reply.body == b"ok"
        assert peer.left == b""
        assert running.engines[0].connections == 2


async def test_junk_behind_a_chunked_answer() -> None:

    answer = head(200, "transfer-encoding: chunked") + chunk(b"ok") + LAST
    async with rig(says(answer + b"\r\n" + answer)) as running:
        peer = await running.connect()
        for _ in range(2):
            await peer.send(get("/a"))
            reply = await peer.reply("GET")
            assert reply.raw == answer
        assert running.engines[0].connections == 2
