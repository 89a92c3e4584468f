"""The kept connection of scrapes against raw servers: every framing, every way to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from warmlane.router.feeds.client import EngineError
from warmlane.router.feeds.kept_line import KeptLine

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Server:
    """Answers each request with the next of its pieces; None hangs up after those before it."""

    def __init__(self) -> None:
        self.answers: list[list[bytes | None]] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                for piece in self.answers.pop(0):
                    if piece is None:
                        writer.close()
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    yield made
    await made.stop()


@pytest.fixture
async def line(server: Server) -> AsyncIterator[Callable[..., Any]]:
    url, lines = await server.start(), []

    def make(keepalive_s: float = 60.0, **headers: str) -> KeptLine:
        lines.append(KeptLine(url, headers, keepalive_s))
        return lines[-1]

    yield make
    for each in lines:
        each.close()
    await asyncio.sleep(0)


async def ask(line: KeptLine, most: int = 1000, timeout_s: float = 10.0) -> tuple[int, bytes]:
    return await line.get("/metrics", timeout_s, most)


async def test_one_connection_serves_many_requests(server: Server, line: Any) -> None:
    one = line(Authorization="Bearer secret")
    server.answers = [[OK], [OK[:20], OK[20:]], [OK]]
    for _ in range(3):
        assert await ask(one) == (200, b"hello")
    assert server.connections == 1
    head = server.requests[0].decode()
    assert head.startswith("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "Authorization: Bearer secret\r\n" in head


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        ([b"HTTP/1.1 404 Nope\r\ncontent-length: 0\r\n\r\n"], 404, b""),
        ([b"HTTP/1.1 204 None\r\n\r\n"], 204, b""),
        ([b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK], 200, b"hello"),
        (
            [
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe",
                b"\r\n1\r\nl\r\n0\r\n\r\n",
            ],
            200,
            b"hel",
        ),
        ([b"HTTP/1.1 200 OK\r\n\r\nto the ", b"end", None], 200, b"to the end"),
        ([b"HTTP/1.0 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"], 200, b"hi"),
    ],
)
async def test_every_framing(
    server: Server, line: Any, answer: list[bytes | None], status: int, body: bytes
) -> None:
    server.answers = [answer, [OK]]
    one = line()
    assert await ask(one) == (status, body)
    assert await ask(one) == (200, b"hello"), "the next request is served, on whatever connection"


async def test_a_connection_that_was_closed_while_idle_is_made_anew(
    server: Server, line: Any
) -> None:
    server.answers = [[OK, None], [OK], [OK]]
    one = line()
    assert await ask(one) == (200, b"hello")
    await asyncio.sleep(0.05)
    assert await ask(one) == (200, b"hello")
    assert server.connections == 2
    late = line(keepalive_s=0.0)
    server.answers = [[OK], [OK]]
    await ask(late)
    await ask(late)
    assert server.connections == 4, "idle for too long"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "no HTTP answer"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", None], "ConnectionResetError"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"], "broken chunked"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"x" * 1500], "over 1000 bytes"),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000], "a head over"),
        ([b"HTTP/1.1 200 OK\r\n", None], "ConnectionResetError"),
    ],
)
async def test_a_bad_answer_is_an_error_and_the_next_one_is_read(
    server: Server, line: Any, answer: list[bytes | None], why: str
) -> None:
    server.answers = [answer, [OK]]
    one = line()
    with pytest.raises(EngineError, match=why):
        await ask(one)
    assert await ask(one) == (200, b"hello")


async def test_silence_ends_by_the_time_out(server: Server, line: Any) -> None:
    server.answers = [[], [OK]]
    one = line()
    with pytest.raises(EngineError, match=r"no answer in 0\.05 s"):
        await ask(one, timeout_s=0.05)
    assert await ask(one) == (200, b"hello")


async def test_nobody_listens() -> None:
    one = KeptLine("http://127.0.0.1:9", {}, 1.0)
    with pytest.raises(EngineError, match="ConnectionRefusedError"):
        await ask(one)


async def test_bytes_that_nobody_asked_for_close_the_line(server: Server, line: Any) -> None:
    server.answers = [[OK, OK], [OK]]
    one = line()
    assert await ask(one) == (200, b"hello")
    await asyncio.sleep(0.05)
    assert await ask(one) == (200, b"hello")
    assert server.connections == 2


async def test_a_cancelled_request_leaves_nothing_to_the_next(server: Server, line: Any) -> None:
    server.answers = [[], [OK]]
    one = line()
    task = asyncio.create_task(ask(one))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ask(one) == (200, b"hello")
