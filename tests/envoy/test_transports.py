"""Both transports over real sockets with grpcio's clients: the same calls, the same answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.common import until
from tests.envoy.transports import (
    BIG,
    ECHO,
    NAMES,
    Echo,
    Keeper,
    Later,
    Listen,
    call,
    listen,
)
from warmlane.envoy.health import Health, Serving
from warmlane.envoy.streams import TransportLimits
from warmlane.envoy.tls import Tls
from warmlane.envoy.transport_native import why_missing
from warmlane.router.config import ExtProc

__all__ = ["listen"]
both = pytest.mark.parametrize("name", NAMES)
native_only = pytest.mark.skipif(bool(why_missing()), reason=why_missing())


@both
@pytest.mark.parametrize("kind", [Echo, Later])
async def test_messages_of_all_sizes(name: str, kind: type[Echo], listen: Listen) -> None:
    keeper = Keeper(kind)
    server = await listen(name, {ECHO: keeper})
    sizes = (0, 1, 5, 16_379, 16_384, 62_000, 65_536, 1_000_000, 16_000_000)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=BIG) as channel:
        stream = call(channel)
        for size in sizes:
            message = bytes([size % 251]) * size
            await stream.write(message)
            assert await stream.read() == message
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
    await server.close()
    (handler,) = keeper.handlers
    assert [len(one) for one in handler.heard[:-2]] == list(sizes)
    assert handler.heard[-2:] == ["half_closed", "closed"]


@both
async def test_many_streams_at_once(name: str, listen: Listen) -> None:
    keeper = Keeper(Later)
    server = await listen(name, {ECHO: keeper})

    async def talk(channel: grpc.aio.Channel, number: int) -> None:
        stream = call(channel)
        for turn in range(5):
            message = b"%d/%d" % (number, turn) * number
            await stream.write(message)
            assert await stream.read() == message
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        await asyncio.gather(*(talk(channel, number) for number in range(100)))
    await server.close()
    assert len(keeper.handlers) == 100
    assert all(handler.heard.count("closed") == 1 for handler in keeper.handlers)
    assert server.stats()["streams_total"] == 100 and server.stats()["open_streams"] == 0


@both
async def test_a_client_that_leaves_in_the_middle(name: str, listen: Listen) -> None:
    keeper = Keeper()
    server = await listen(name, {ECHO: keeper})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        streams = []
        for _ in range(2):
            streams.append(call(channel))
            await streams[-1].write(b"hello")
            assert await streams[-1].read() == b"hello"
        stream, other = streams
        stream.cancel()
        await until(lambda: "closed" in keeper.handlers[0].heard)
        keeper.handlers[0].wake()  # late, and without effect
        await other.write(b"still")
        assert await other.read() == b"still"
    await until(lambda: "closed" in keeper.handlers[1].heard)
    assert [handler.heard.count("closed") for handler in keeper.handlers] == [1, 1]


class Refuses(Echo):
    """Ends its stream with what the client asks for."""

    def receive(self, message: bytes) -> None:
        super().receive(message)
        self.status = (int(message), "because é %")


@both
async def test_the_handlers_status_is_the_clients(name: str, listen: Listen) -> None:
    server = await listen(name, {ECHO: Keeper(Refuses)})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for number in (3, 8, 16):
            stream = call(channel)
            await stream.write(b"%d" % number)
            assert await stream.read() == b"%d" % number
            assert (await stream.code()).value[0] == number
            assert await stream.details() == "because é %"


@both
async def test_unknown_method(name: str, listen: Listen) -> None:
    server = await listen(name, {ECHO: Keeper()})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Service/Nope")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@both
async def test_a_message_over_the_limit(name: str, listen: Listen) -> None:
    limits = TransportLimits(message_bytes=100_000)
    keeper = Keeper()
    server = await listen(name, {ECHO: keeper}, limits=limits)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(ECHO)(b"x" * 100_001)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await channel.unary_unary(ECHO)(b"x" * 100_000) == b"x" * 100_000
    await server.close()
    assert all("closed" in handler.heard for handler in keeper.handlers)


@native_only
async def test_compressed_messages_are_refused(listen: Listen) -> None:
    """By a synchronous client: grpc.aio hides the status behind its failed write."""
    server = await listen("native", {ECHO: Keeper()})

    def ask() -> tuple[Any, str]:
        where, zipped = f"127.0.0.1:{server.port}", grpc.Compression.Gzip
        with grpc.insecure_channel(where, compression=zipped) as channel:
            try:
                channel.unary_unary(ECHO)(b"x" * 10_000)
            except grpc.RpcError as error:
                return error.code(), error.details()
        raise AssertionError("accepted")

    code, text = await asyncio.to_thread(ask)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert text == "compressed messages are not supported"


@both
async def test_health(name: str, listen: Listen) -> None:
    health = Health()
    server = await listen(name, health.methods())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x01"
        assert await check(b"\x0a\x04nope") == bytes([8, Serving.SERVICE_UNKNOWN])
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await watch.read() == bytes([8, Serving.SERVING])
        health.set(draining=True)
        assert await watch.read() == bytes([8, Serving.NOT_SERVING])
        watch.cancel()


@both
async def test_drain_lets_streams_finish(name: str, listen: Listen) -> None:
    keeper = Keeper()
    server = await listen(name, {ECHO: keeper})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stream = call(channel)
        await stream.write(b"before")
        assert await stream.read() == b"before"
        draining = asyncio.create_task(server.drain(20))
        await asyncio.sleep(0.2)
        await stream.write(b"during")
        assert await stream.read() == b"during"
        assert not draining.done()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        assert await draining is True
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", server.port)


@both
async def test_streams_that_end_together_in_a_drain_all_hear_their_status(
    name: str, listen: Listen
) -> None:
    server = await listen(name, {ECHO: Keeper()})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        streams = [call(channel) for _ in range(64)]
        for stream in streams:
            await stream.write(b"here")
            assert await stream.read() == b"here"
        draining = asyncio.create_task(server.drain(20))
        await asyncio.gather(*(stream.done_writing() for stream in streams))
        assert {await stream.code() for stream in streams} == {grpc.StatusCode.OK}
        assert await draining is True


@both
async def test_drain_that_takes_too_long(name: str, listen: Listen) -> None:
    keeper = Keeper()
    server = await listen(name, {ECHO: keeper})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stream = call(channel)
        await stream.write(b"stays")
        assert await stream.read() == b"stays"
        in_time = await server.drain(0.2)
        assert in_time is False or name == "grpcio"  # which cuts them before it counts
        await server.close()
        assert keeper.handlers[0].heard[-1] == "closed"
        assert await stream.code() is not grpc.StatusCode.OK


@both
async def test_drain_under_load_loses_no_stream(name: str, listen: Listen) -> None:
    """Clients that open streams all the time: those served end well, the rest may be retried."""
    keeper = Keeper()
    server = await listen(name, {ECHO: keeper})
    served, failed = 0, []

    async def ask(channel: grpc.aio.Channel) -> None:
        nonlocal served
        while True:
            try:
                assert await channel.unary_unary(ECHO)(b"q") == b"q"
            except grpc.aio.AioRpcError as error:
                failed.append(error)
                return
            served += 1

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        asking = [asyncio.create_task(ask(channel)) for _ in range(8)]
        await until(lambda: served > 100)
        whole = await server.drain(20)
        await asyncio.wait_for(asyncio.gather(*asking), 30)
    # UNAVAILABLE: refused, or nobody listens any more; never a stream that was cut.
    codes = {error.code() for error in failed}
    if name == "grpcio":  # its server accepts streams while it stops, and then cancels them
        codes.discard(grpc.StatusCode.CANCELLED)
    else:
        assert whole and len(keeper.handlers) == served
    assert codes <= {grpc.StatusCode.UNAVAILABLE}


@both
async def test_tls(name: str, listen: Listen) -> None:
    tls = Tls(ExtProc())
    keeper = Keeper()
    server = await listen(name, {ECHO: keeper}, tls)
    credentials = grpc.ssl_channel_credentials(tls.pair[1])
    options = [("grpc.ssl_target_name_override", "localhost"), *BIG]
    where = f"127.0.0.1:{server.port}"
    async with grpc.aio.secure_channel(where, credentials, options=options) as channel:
        for size in (1, 100_000, 5_000_000):
            assert await channel.unary_unary(ECHO)(b"x" * size) == b"x" * size


@native_only
async def test_tls_without_h2_is_refused(listen: Listen) -> None:
    server = await listen("native", {ECHO: Keeper()}, Tls(ExtProc()))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])

    def ask() -> bytes:
        where = ("127.0.0.1", server.port)
        with socket.create_connection(where, 10) as plain:
            try:
                with context.wrap_socket(plain) as secure:
                    return secure.recv(100)
            except OSError as error:  # the handshake or the connection is cut, as TLS 1.2 or 1.3
                return f"{error}".encode()

    assert b"HTTP" not in await asyncio.to_thread(ask)
    await until(lambda: server.stats()["open_connections"] == 0)
    assert server.stats()["streams_total"] == 0


@native_only
async def test_a_handshake_that_never_ends_is_no_connection(listen: Listen) -> None:
    """Nor one that fails: nobody ticks it, and a drain does not wait for it."""
    server = await listen("native", {ECHO: Keeper()}, Tls(ExtProc()))
    pending = socket.create_connection(("127.0.0.1", server.port), 10)
    failed = socket.create_connection(("127.0.0.1", server.port), 10)
    failed.sendall(b"this is no TLS" * 10)
    failed.setblocking(False)
    await asyncio.sleep(0.1)
    server._tick()
    failed.close()
    assert await server.drain(5)
    pending.close()


@native_only
async def test_a_tick_before_the_greeting_harms_nobody(listen: Listen) -> None:
    server = await listen("native", {ECHO: Keeper()})
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        await until(lambda: server.stats()["open_connections"] == 1)
        server._tick()
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        client.settimeout(10)
        assert await asyncio.to_thread(client.recv, 9), "its SETTINGS, not the end"


@native_only
async def test_handshakes_that_fail_leave_nothing(listen: Listen) -> None:
    """A connection counts from the end of its handshake; before that nobody would take it away."""
    keeper = Keeper()
    tls = Tls(ExtProc())
    server = await listen("native", {ECHO: keeper}, tls)
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(300), b"\x16\x03\x01"):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        writer.close()
        with contextlib.suppress(OSError):
            await reader.read()
    credentials = grpc.ssl_channel_credentials(tls.pair[1])
    options = [("grpc.ssl_target_name_override", "localhost")]
    where = f"127.0.0.1:{server.port}"
    async with grpc.aio.secure_channel(where, credentials, options=options) as channel:
        assert await channel.unary_unary(ECHO)(b"x") == b"x"
    await asyncio.wait_for(server.close(), 5)
    assert server.stats()["connections_total"] == 1
    assert server.stats()["open_connections"] == 0


class Breaks(Echo):
    """Fails in `receive`."""

    def receive(self, message: bytes) -> None:
        raise ValueError("a mistake of ours")


@native_only
async def test_a_failing_handler_is_reported(
    caplog: pytest.LogCaptureFixture, listen: Listen
) -> None:
    server = await listen("native", {ECHO: Keeper(Breaks)})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(ECHO)(b"prompt text")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "a mistake of ours" in caplog.text and "prompt text" not in caplog.text


@native_only
@pytest.mark.skipif(shutil.which("h2load") is None, reason="no h2load (apt: nghttp2-client)")
async def test_h2load(tmp_path: Path, listen: Listen) -> None:
    """Another client, many connections: every request answered."""
    server = await listen("native", {ECHO: Keeper()})
    body = tmp_path / "body"
    body.write_bytes(struct.pack(">BI", 0, 4000) + bytes(4000))
    words = ["h2load", "-n", "5000", "-c", "8", "-m", "32", "-d", str(body)]
    words += ["-H", "content-type: application/grpc", f"http://127.0.0.1:{server.port}{ECHO}"]
    tool = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(tool.communicate(), 60)
    assert b"5000 succeeded, 0 failed, 0 errored, 0 timeout" in said
    assert b"status codes: 5000 2xx" in said
    await server.close()
    assert server.stats()["held_bytes"] == 0
