"""Replicas that fail in every way, before and after the client's first byte."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from .engine import (
    BEGUN,
    DONE,
    ERROR_EVENT,
    FULL,
    GOOD,
    LAST,
    SSE_HEAD,
    STREAM,
    Engine,
    Out,
    Script,
    Seen,
    answer_body,
    chat_body,
    chunk,
    event,
    hangs,
    head,
    says,
    says_then_closes,
    streams,
    whole,
)
from .rig import ends_with_error, post, rig

PAGE = whole(b"<html>bad gateway</html>", 502, "text/html")
ABORT_JSON = whole(answer_body("", "abort"))
ABORT_STREAM = SSE_HEAD + chunk(event(role=True), event("", "abort"), DONE) + LAST

BEFORE_FIRST_BYTE: dict[str, tuple[Script, str]] = {
    "closed without a byte": (says_then_closes(), "reset"),
    "reset without a byte": (says_then_closes(reset=True), "reset"),
    "half a head": (says_then_closes(b"HTTP/1.1 200 OK\r\nContent-Le"), "reset"),
    "head only": (
        says_then_closes(head(200, "content-length: 9", "content-type: application/json")),
        "reset",
    ),
    "half a body": (says_then_closes(whole(answer_body())[:-5]), "reset"),
    "half a chunked body": (
        says_then_closes(
            head(200, "transfer-encoding: chunked", "content-type: application/json") + b"40\r\nabc"
        ),
        "reset",
    ),
    "not HTTP": (says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "protocol"),
    "length and coding": (
        says(head(200, "content-length: 1", "transfer-encoding: chunked") + b"1\r\na\r\n0\r\n\r\n"),
        "protocol",
    ),
    "bad chunk": (
        says(head(200, "transfer-encoding: chunked", "content-type: application/json") + b"zz\r\n"),
        "protocol",
    ),
    "bare line feeds": (says(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n"), "protocol"),
    "switches protocols": (says(head(101, "upgrade: x", "connection: upgrade")), "protocol"),
    "endless head": (says(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 80_000), "protocol"),
    "502": (says(PAGE), "gateway"),
    "504": (says(whole(b"", 504, "text/plain")), "gateway"),
    "503 of a gateway": (says(whole(b"no healthy upstream", 503, "text/plain")), "gateway"),
    "503 of the engine": (says(FULL), "backpressure"),
    "429": (says(whole(b'{"error":{"message":"slow down"}}', 429)), "backpressure"),
    "abort without a token": (says(ABORT_JSON), "aborted"),
}
STREAM_BEFORE_FIRST_TOKEN: dict[str, tuple[Script, str]] = {
    "abort without a token": (says(ABORT_STREAM), "aborted"),
    "error event": (streams(ERROR_EVENT, DONE), "error_event"),
    "error event after the role": (streams(event(role=True), ERROR_EVENT, DONE), "error_event"),
    "closed after the role": (says_then_closes(SSE_HEAD + chunk(event(role=True))), "reset"),
    "head only": (says_then_closes(SSE_HEAD), "reset"),
    "bad chunk after the role": (says(SSE_HEAD + chunk(event(role=True)) + b"xyz\r\n"), "protocol"),
}


@pytest.mark.parametrize("name", BEFORE_FIRST_BYTE)
@pytest.mark.parametrize("stream", [False, True])
async def test_moves_before_the_first_byte(name: str, stream: bool) -> None:
    script, reason = BEFORE_FIRST_BYTE[name]
    good = streams(*STREAM) if stream else GOOD
    async with rig(Engine(script), Engine(good)) as running:
        for _ in range(2):  # round robin: one of the two goes to the bad engine first
            reply = await running.chat(stream=stream)
            assert reply.status == 200, reply
            assert reply.body == (b"".join(STREAM) if stream else answer_body())
        assert len(running.engines[0].seen) == 1
        assert len(running.engines[1].seen) == 2
        assert running.router.metrics.counts["warmlane_retries_total"] == {("default", reason): 1}


@pytest.mark.parametrize("name", STREAM_BEFORE_FIRST_TOKEN)
async def test_moves_before_the_first_token(name: str) -> None:
    script, reason = STREAM_BEFORE_FIRST_TOKEN[name]
    async with rig(Engine(script), Engine(streams(*STREAM))) as running:
        for _ in range(2):
            reply = await running.chat(stream=True)
            assert reply.body == b"".join(STREAM)
            assert not reply.error
        assert running.router.metrics.counts["warmlane_retries_total"] == {("default", reason): 1}


async def test_refused_connection_moves() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = Engine()
        dead.port = unused.getsockname()[1]
        async with rig(dead, Engine(GOOD)) as running:
            for _ in range(4):
                assert (await running.chat()).status == 200
            assert running.count("retries_total") == 2


async def test_connect_time_out_moves() -> None:
    # A listener whose backlog is full drops the handshake: the connect hangs.
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        dead = Engine()
        dead.port = full.getsockname()[1]
        async with rig(dead, Engine(GOOD), timeouts={"connect_s": 0.2}) as running:
            for _ in range(2):
                assert (await running.chat()).status == 200
            assert running.router.metrics.counts["warmlane_retries_total"] == {
                ("default", "connect"): 1
            }


LAST_RESORT = {
    "closed": (says_then_closes(), 502, "upstream_reset"),
    "not HTTP": (says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), 502, "upstream_protocol"),
    "abort": (says(ABORT_JSON), 503, None),
    "error event": (streams(ERROR_EVENT, DONE), 502, "upstream_error_event"),
    "never answers": (hangs, 504, "timeout"),
}


@pytest.mark.parametrize("name", LAST_RESORT)
async def test_no_choice_left(name: str) -> None:
    script, status, code = LAST_RESORT[name]
    async with rig(script, timeouts={"first_byte_s": 0.2}) as running:
        peer = await running.connect()
        for _ in range(2):  # the client's connection stays usable
            await peer.send(post(chat_body(stream=True)))
            reply = await peer.reply()
            assert reply.status == status, reply
            assert reply.json["error"]["message"]
            assert code is None or reply.json["error"]["code"] == code
        assert running.count("retries_total") == 0


@pytest.mark.parametrize("raw", [PAGE, FULL], ids=["gateway", "full"])
async def test_last_refusal_passes_in_the_replicas_own_words(raw: bytes) -> None:
    async with rig(Engine(says(raw)), Engine(says(raw))) as running:
        reply = await running.chat()
        assert reply.raw == raw
        assert len(running.seen) == 2


async def test_engine_errors_are_not_retried() -> None:
    raw = whole(b'{"error":{"message":"boom"}}', 500)
    async with rig(Engine(says(raw)), Engine(says(raw))) as running:
        assert (await running.chat()).raw == raw
        assert len(running.seen) == 1


# What vLLM answers to requests that wait when its core process dies.
DEAD = whole(
    b'{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root '
    b'cause.","type":"InternalServerError","param":null,"code":500}}',
    500,
)


async def test_a_request_on_a_dying_engine_moves_on() -> None:
    async with rig(Engine(says(DEAD)), Engine(GOOD), ejection={"failures": 1}) as running:
        for _ in range(3):
            assert (await running.chat()).status == 200
        assert running.count("ejections_total") <= 1
    async with rig(Engine(says(DEAD)), Engine(says(DEAD))) as running:
        assert (await running.chat()).raw == DEAD
        assert len(running.seen) == 2


async def test_retry_budget_ends_retries() -> None:
    retry = {"budget_min": 2, "budget_ratio": 0.0}
    ejection = {"failures": 1000, "share": 1.0, "min_requests": 1000}
    async with rig(
        Engine(says_then_closes()), Engine(says_then_closes()), retry=retry, ejection=ejection
    ) as running:
        for _ in range(6):
            assert (await running.chat()).status == 502
        assert len(running.seen) == 6 + 2
        assert running.count("retries_total") == 2


async def test_attempts_are_limited() -> None:
    engines = [Engine(says_then_closes()) for _ in range(5)]
    async with rig(*engines, retry={"attempts": 3}) as running:
        assert (await running.chat()).status == 502
        assert len(running.seen) == 3


async def test_stale_connection_is_retried_without_blame() -> None:
    answered = 0

    async def script(seen: Seen, out: Out) -> None:
        nonlocal answered
        answered += 1
        if answered == 2:  # the second request on the first connection: closed without a byte
            out.close()
            return
        await GOOD(seen, out)

    async with rig(script) as running:
        for _ in range(3):
            assert (await running.chat()).status == 200
        assert running.engines[0].connections == 2
        assert running.count("retries_total") == 0
        assert running.proxy.state.sides["default"].ejector.ejected == 0


async def test_idle_connections_expire_before_the_engine_closes_them() -> None:
    async with rig(GOOD, timeouts={"upstream_keepalive_s": 0.2}) as running:
        await running.chat()
        assert len(running.proxy.state.links.connections) == 1
        await asyncio.sleep(0.5)
        assert len(running.proxy.state.links.connections) == 0
        await running.chat()
        assert running.engines[0].connections == 2


# After the first byte


BROKEN: dict[str, Script] = {
    "closed": says_then_closes(BEGUN, pause=0.01),
    "reset": says_then_closes(BEGUN, reset=True, pause=0.01),
    "closed inside a chunk": says_then_closes(BEGUN, chunk(STREAM[3])[:40], pause=0.01),
    "closed inside an event": says_then_closes(BEGUN, chunk(STREAM[3][:40]), pause=0.01),
    "closed between two chunks of an event": says_then_closes(
        BEGUN, chunk(STREAM[3][:40], STREAM[3][40:-1]), pause=0.01
    ),
    "closed inside a size line": says_then_closes(BEGUN, b"1", pause=0.01),
    "bad chunk": says(BEGUN, b"xyz\r\n", pause=0.01),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_begun_stream_ends_with_one_error_event(name: str) -> None:
    async with rig(Engine(BROKEN[name]), Engine(BROKEN[name])) as running:
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True)))
        reply = await peer.reply()
        assert reply.body.startswith(b"".join(STREAM[:3]))
        ends_with_error(reply.body)
        assert len(running.seen) == 1
        assert running.count("streams_broken_total") == 1
        # the message is whole, so the connection lives: a client may have its next request on it
        await peer.send(post(chat_body(stream=True)))
        ends_with_error((await peer.reply()).body)


@pytest.mark.parametrize("size", range(1, 400, 23))
async def test_stream_broken_anywhere_shows_whole_events_only(size: int) -> None:
    raw = chunk(*STREAM)[: len(chunk(*STREAM[:2])) + size]
    async with rig(says_then_closes(SSE_HEAD + raw[:90], raw[90:], pause=0.01)) as running:
        reply = await running.chat(stream=True)
        if DONE in reply.body:
            pytest.fail("a broken stream ended cleanly")
        for each in reply.body.split(b"\n\n"):
            assert not each or json.loads(each.removeprefix(b"data: "))
        assert b'"error"' in reply.body


async def test_engine_error_event_passes_without_its_done() -> None:
    for events in ([*STREAM[:3], ERROR_EVENT, DONE], [*STREAM[:3], ERROR_EVENT + DONE]):
        async with rig(streams(*events, pause=0.005)) as running:
            peer = await running.connect()
            await peer.send(post(chat_body(stream=True)))
            reply = await peer.reply()
            assert reply.body == b"".join(STREAM[:3]) + ERROR_EVENT
            assert running.count("streams_broken_total") == 1
            await peer.send(post(chat_body(stream=True)))
            assert (await peer.reply()).body == reply.body


async def test_error_event_that_blames_the_request_is_the_answer() -> None:
    error = ERROR_EVENT.replace(b"500", b"400")
    async with rig(Engine(streams(error, DONE)), Engine(GOOD), ejection={"failures": 1}) as running:
        for _ in range(2):
            reply = await running.chat(stream=True)
            assert reply.body in (error, answer_body())
        assert running.count("retries_total") == running.count("ejections_total") == 0


async def test_engine_stopped_in_mid_stream() -> None:
    cut = event("", "abort")
    async with rig(streams(*STREAM[:3], cut, DONE, pause=0.005)) as running:
        reply = await running.chat(stream=True)
        assert reply.body.startswith(b"".join(STREAM[:3]) + cut)
        assert ends_with_error(reply.body) == "engine_aborted"


async def test_stream_without_framing_that_ends_early() -> None:
    plain = head(200, "content-type: text/event-stream")
    async with rig(says_then_closes(plain + b"".join(STREAM[:3]), pause=0.01)) as running:
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True)))
        ends_with_error((await peer.reply()).body)


async def test_stream_without_framing_that_ends_well() -> None:
    plain = head(200, "content-type: text/event-stream")
    async with rig(says_then_closes(plain + b"".join(STREAM), pause=0.01)) as running:
        assert (await running.chat(stream=True)).body == b"".join(STREAM)


@pytest.mark.parametrize("chunked", [False, True])
async def test_other_answers_that_break_are_cut(chunked: bool) -> None:
    if chunked:
        raw = head(200, "transfer-encoding: chunked", "content-type: audio/wav") + chunk(b"abc")
    else:
        raw = head(200, "content-length: 10", "content-type: audio/wav") + b"abc"
    async with rig(Engine(says_then_closes(raw)), Engine(says_then_closes(raw))) as running:
        reply = await running.ask(post(b"{}", "/v1/audio/speech"))
        assert reply.error
        assert len(running.seen) == 1


async def test_http10_stream_that_breaks() -> None:
    request = post(chat_body(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with rig(says_then_closes(BEGUN, pause=0.01)) as running:
        peer = await running.connect()
        await peer.send(request)
        ends_with_error((await peer.at_end()).split(b"\r\n\r\n", 1)[1])
