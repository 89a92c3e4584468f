"""What goes through unchanged, and what does not cross a hop."""

from __future__ import annotations

import json

import pytest

from .engine import (
    GOOD,
    LAST,
    SSE_HEAD,
    STREAM,
    Engine,
    answer_body,
    chat_body,
    chunk,
    head,
    says,
    streams,
    whole,
)
from .rig import get, post, rig

BODIES = [
    chat_body(),
    chat_body(unknown={"deep": [1, 2.50, None]}, stream=False),
    b'{ "messages" :[{"role":"user","content":"\\u00e9\\n \xc3\xa9"}],\r\n "model":"m" , "n":1.0}',
    b'{"model":"m","messages":[],"logit_bias":{"50256":-1e2},"zz":"' + b"q" * 70_000 + b'"}',
]


@pytest.mark.parametrize("body", BODIES)
async def test_body_arrives_byte_identical(body: bytes) -> None:
    async with rig(GOOD) as running:
        reply = await running.ask(post(body))
        assert reply.status == 200
        assert reply.body == answer_body()
        assert running.seen[0].body == body


async def test_unknown_headers_keep_bytes_and_order() -> None:
    odd = [
        "X-Zeta:no-blank",
        "x-alpha:   three blanks",
        "X-TAB:\tt",
        "X-Zeta: again",
        "traceparent: 00-ab-cd-01",
    ]
    async with rig(GOOD) as running:
        await running.ask(
            post(chat_body(), extra=[*odd, "X-Request-Id: r1", "Authorization: Bearer k"])
        )
        lines = [line.decode() for line in running.seen[0].lines]
        start = lines.index(odd[0])
        assert lines[start : start + 7] == [*odd, "X-Request-Id: r1", "Authorization: Bearer k"]


async def test_hop_and_internal_headers_are_cut() -> None:
    extra = [
        "Connection: keep-alive, X-Private",
        "X-Private: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic x",
        "TE: trailers",
        "X-Data-Parallel-Rank: 3",
        "X-Kept: yes",
    ]
    async with rig(GOOD) as running:
        await running.ask(post(chat_body(), extra=extra))
        seen = running.seen[0]
        names = [line.partition(b":")[0].lower() for line in seen.lines[1:]]
        assert names == [b"host", b"content-type", b"x-kept", b"content-length"]


async def test_connection_header_cannot_remove_framing_or_credentials() -> None:
    extra = ["Connection: close, content-length, host, authorization", "Authorization: Bearer k"]
    async with rig(GOOD) as running:
        await running.ask(post(chat_body(), extra=extra))
        seen = running.seen[0]
        assert seen.values(b"authorization") == [b"Bearer k"]
        assert len(seen.values(b"content-length")) == len(seen.values(b"host")) == 1


async def test_host_is_the_replicas_own() -> None:
    async with rig(GOOD) as running:
        await running.ask(post(chat_body()))
        assert running.seen[0].values(b"host") == [f"127.0.0.1:{running.engines[0].port}".encode()]


async def test_query_and_absolute_form() -> None:
    async with rig(GOOD) as running:
        await running.ask(get("/tokenizer_info?a=1&b=%20"), "GET")
        await running.ask(get("http://other.test/v9/x?y=1"), "GET")
        await running.ask(get("http://other.test?y=1"), "GET")
        assert [seen.lines[0] for seen in running.seen] == [
            b"GET /tokenizer_info?a=1&b=%20 HTTP/1.1",
            b"GET /v9/x?y=1 HTTP/1.1",
            b"GET /?y=1 HTTP/1.1",
        ]


async def test_answer_head_passes_but_for_hop_headers() -> None:
    raw = head(
        418,
        "date: today",
        "X-Odd:1",
        "connection: keep-alive, x-hop",
        "x-hop: 1",
        "keep-alive: timeout=5",
        "x-odd: 2",
        "content-length: 2",
        reason="I'm a teapot",
    )
    async with rig(says(raw + b"ok")) as running:
        reply = await running.ask(get("/anything"), "GET")
        assert reply.raw.startswith(
            b"HTTP/1.1 418 I'm a teapot\r\ndate: today\r\nX-Odd:1\r\nx-odd: 2\r\n"
        )
        assert reply.body == b"ok"
        assert reply.header(b"x-hop") is None
        assert reply.header(b"keep-alive") is None


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 501, 503])
async def test_statuses_and_their_bodies_pass(status: int) -> None:
    body = json.dumps(
        {"error": {"message": "m", "type": "t", "param": None, "code": status}}
    ).encode()
    async with rig(says(whole(body, status))) as running:
        reply = await running.chat()
        assert reply.status == status
        assert reply.body == body
        assert len(running.seen) == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_body(status: int) -> None:
    async with rig(says(head(status, "x-a: b"))) as running:
        peer = await running.connect()
        for _ in range(2):
            await peer.send(get("/nothing"))
            reply = await peer.reply("GET")
            assert (reply.status, reply.body, reply.error) == (status, b"", "")
        assert running.engines[0].connections == 1


async def test_head_request_has_no_body_but_its_length() -> None:
    async with rig(says(head(200, "content-length: 1234"))) as running:
        peer = await running.connect()
        for _ in range(3):
            await peer.send(get("/file", method="HEAD"))
            reply = await peer.reply("HEAD")
            assert reply.status == 200
            assert reply.header(b"content-length") == b"1234"
        assert running.engines[0].connections == 1


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("close", [(), ("connection: close",)])
async def test_answer_in_one_read_or_in_more(debug: bool, close: tuple[str, ...]) -> None:
    body = answer_body()
    raw = head(200, *close, f"content-length: {len(body)}", "content-type: application/json") + body
    scripts = [
        says(raw),
        says(raw[:30], raw[30:], pause=0.02),
        says(raw[:-9], raw[-9:], pause=0.02),
    ]
    answers = []
    for script in scripts:
        async with rig(script, debug_headers=debug) as running:
            reply = await running.chat()
            assert reply.body == body
            assert (reply.header(b"x-warmlane-replica") is not None) == debug
            assert reply.header(b"connection") is None  # the replica's hop, not the client's
            answers.append(reply.raw if not debug else reply.body)
    assert len(set(answers)) == 1


async def test_stream_passes_byte_identical() -> None:
    async with rig(streams(*STREAM, pause=0.005)) as running:
        reply = await running.chat(stream=True)
        assert reply.body == b"".join(STREAM)
        assert not reply.error
        # Chunks as the engine made them: raw bytes pass when they are cut between events.
        assert reply.raw.endswith(chunk(STREAM[-1]) + LAST)


async def test_stream_in_one_read() -> None:
    async with rig(says(SSE_HEAD + chunk(*STREAM) + LAST)) as running:
        reply = await running.chat(stream=True)
        assert reply.body == b"".join(STREAM)
        assert reply.raw == SSE_HEAD + chunk(*STREAM) + LAST


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_stream_cut_anywhere(size: int) -> None:
    raw = SSE_HEAD + chunk(*STREAM) + LAST
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    async with rig(says(*pieces, pause=0.0005)) as running:
        reply = await running.chat(stream=True)
        assert reply.body == b"".join(STREAM)
        assert not reply.error


async def test_chunked_answer_without_events() -> None:
    parts = [b"a" * 10, b"\r\n0\r\n\r\n", b"", b"b" * 100_000]
    raw = head(200, "Transfer-Encoding: chunked", "content-type: audio/wav") + chunk(
        *filter(None, parts)
    )
    async with rig(says(raw[:30], raw[30:90], raw[90:], LAST)) as running:
        reply = await running.ask(post(b"{}", "/v1/audio/speech"))
        assert reply.body == b"".join(parts)


async def test_answer_trailers_pass() -> None:
    raw = (
        head(200, "Transfer-Encoding: chunked", "Trailer: x-sum")
        + chunk(b"abc")
        + b"0\r\nx-sum: 6\r\n\r\n"
    )
    async with rig(says(raw)) as running:
        reply = await running.ask(get("/with-trailers"), "GET")
        assert reply.body == b"abc"
        assert reply.trailers == [(b"x-sum", b"6")]


async def test_chunked_request_arrives_with_a_length() -> None:
    body = chat_body()
    head_bytes = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    async with rig(GOOD) as running:
        reply = await running.ask(head_bytes + chunk(body[:5], body[5:]) + LAST)
        assert reply.status == 200
        seen = running.seen[0]
        assert seen.body == body
        assert seen.values(b"content-length") == [str(len(body)).encode()]
        assert seen.values(b"transfer-encoding") == []


async def test_request_trailers_pass_but_not_those_that_frame() -> None:
    body = chat_body()
    head_bytes = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    trailers = b"X-Sum: 1\r\nContent-Length: 5\r\nAuthorization: Bearer stolen\r\n"
    async with rig(GOOD) as running:
        await running.ask(head_bytes + chunk(body) + b"0\r\n" + trailers + b"\r\n")
        seen = running.seen[0]
        assert seen.body == body
        assert seen.raw_body.endswith(b"0\r\nX-Sum: 1\r\n\r\n")
        assert seen.values(b"transfer-encoding") == [b"chunked"]


async def test_informational_answers_are_dropped() -> None:
    early = head(103, "link: </a>") + head(100)
    async with rig(says(early, whole(answer_body()), pause=0.01)) as running:
        reply = await running.chat()
        assert reply.status == 200
        assert reply.raw.startswith(b"HTTP/1.1 200")


async def test_answer_until_close() -> None:
    async def script(seen: object, out: object) -> None:
        await says(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it")(seen, out)  # type: ignore[arg-type]
        out.close()  # type: ignore[attr-defined]

    async with rig(script) as running:
        peer = await running.connect()
        await peer.send(get("/old"))
        reply = await peer.reply("GET")
        assert reply.body == b"all of it"
        assert reply.raw.startswith(b"HTTP/1.1 200 OK")
        assert reply.header(b"connection") == b"close"
        assert peer.closed


async def test_http10_client_gets_payload_until_close() -> None:
    request = post(chat_body(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with rig(streams(*STREAM)) as running:
        peer = await running.connect()
        await peer.send(request)
        raw = await peer.at_end()
        assert raw.endswith(b"\r\n\r\n" + b"".join(STREAM))
        assert b"transfer-encoding" not in raw.lower()
        assert b"connection: close" in raw.lower()
        assert running.seen[0].lines[0].endswith(b"HTTP/1.1")


async def test_http10_request_without_host() -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        await peer.send(b"GET /x HTTP/1.0\r\n\r\n")
        assert (await peer.at_end()).startswith(b"HTTP/1.1 200")
        assert len(running.seen[0].values(b"host")) == 1


async def test_rank_header_is_set_from_the_replica() -> None:
    engine = Engine(GOOD)
    await engine.start()
    pool = {"replicas": [{"url": engine.url, "rank": 2, "name": "r2"}]}
    async with rig(engine, pool=pool) as running:
        await running.ask(post(chat_body(), extra=["x-data-parallel-rank: 7"]))
        assert running.seen[0].values(b"x-data-parallel-rank") == [b"2"]
