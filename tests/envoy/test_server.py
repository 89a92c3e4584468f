"""The whole picker over a real gRPC channel: streams, TLS, health, limits, drain."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.common import until
from tests.envoy import gateway as envoy
from tests.envoy import rig
from tests.envoy.transports import NAMES
from warmlane.envoy.health import SERVICE
from warmlane.envoy.proto.messages import HealthCheckRequest
from warmlane.envoy.server import PortTaken
from warmlane.envoy.tls import self_signed
from warmlane.router.errors import ConfigError

BODY = envoy.CHAT % b"hello there"
ENDPOINTS = {"127.0.0.1:9", "127.0.0.2:9"}


@pytest.fixture(params=NAMES)
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport that is built here."""
    name: str = request.param
    return name


async def test_a_request_and_its_answer(transport: str) -> None:
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(), envoy.request_body(BODY))
        head, piece = await stream.hear(2)
        assert head.endpoint in ENDPOINTS
        assert piece.piece == (BODY, True)
        assert server.picker.router.open_tickets == 1
        await stream.say(envoy.response_headers(), envoy.response_body(b"yes"))
        answered, body = await stream.hear(2)
        assert answered.kind == "response_headers"
        assert body.piece == (b"yes", True)
        assert await stream.end() == 0
        await until(lambda: server.picker.open == 0)
        assert server.picker.router.open_tickets == 0
        metrics = server.running.metrics.render().decode()
        assert 'warmlane_ext_proc_streams_total{end="done"} 1.0' in metrics


async def test_a_body_of_16_mb_comes_back_as_it_went(transport: str) -> None:
    body = bytes(range(256)) * (1 << 16)
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(path="/v1/files", headers={}))
        cuts = [body[at : at + 500_000] for at in range(0, len(body), 500_000)]
        await stream.say(*[envoy.request_body(cut, cut is cuts[-1]) for cut in cuts])
        head, *pieces = await stream.hear(1 + -(-len(body) // 62_000))
        assert head.set["content-length"] == str(len(body))
        assert envoy.joined(pieces) == body
        assert await stream.end() == 0


async def test_many_streams_at_once(transport: str) -> None:
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:

        async def one() -> None:
            stream = rig.Stream(channel)
            await stream.say(envoy.request_headers(), envoy.request_body(BODY))
            head, _ = await stream.hear(2)
            assert head.endpoint in ENDPOINTS
            assert await stream.end() == 0

        await asyncio.gather(*[one() for _ in range(100)])
        await until(lambda: server.picker.open == 0)
        assert server.picker.router.open_tickets == 0


async def test_a_gateway_that_resets_leaves_nothing(transport: str) -> None:
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        for messages in ([], [envoy.request_headers()], [envoy.request_headers(), BODY]):
            stream = rig.Stream(channel)
            if messages:
                await stream.say(messages[0])
            if len(messages) == 2:
                await stream.say(envoy.request_body(BODY))
                await stream.hear(2)
            stream.call.cancel()
        await until(lambda: server.picker.open == 0)
        assert server.picker.router.open_tickets == 0
        assert server.picker.buffered == 0


async def test_an_unreadable_message_is_invalid_argument(transport: str) -> None:
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        stream = rig.Stream(channel)
        await stream.say(b"\xff\xff")
        assert await stream.code() == 3


async def test_a_message_beyond_the_limit_is_refused(transport: str) -> None:
    async with (
        rig.picker(transport=transport, limits={"body_bytes": 100_000}) as server,
        rig.channel(server) as channel,
    ):
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(envoy.BUFFERED))
        await stream.hear(1)
        await stream.say(envoy.request_body(b"x" * 2_000_000))
        assert await stream.code() == 8


async def test_an_unknown_method_is_unimplemented(transport: str) -> None:
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        call = channel.unary_unary("/envoy.service.ext_proc.v3.ExternalProcessor/Other")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# TLS


async def test_a_certificate_of_its_own_by_default(transport: str) -> None:
    async with (
        rig.picker(transport=transport, insecure=False) as server,
        rig.channel(server) as channel,
    ):
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(method="GET", headers={}, end=True))
        (head,) = await stream.hear(1)
        assert head.endpoint in ENDPOINTS


async def test_certificate_files_are_followed(transport: str, tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def write() -> bytes:
        secret, public = self_signed()
        key.write_bytes(secret)
        cert.write_bytes(public)
        return ssl.PEM_cert_to_DER_cert(public.decode())

    first = write()
    files = {"tls_cert": str(cert), "tls_key": str(key)}
    async with rig.picker(transport=transport, insecure=False, **files) as server:
        seen = await asyncio.to_thread(rig.peer_certificate, server.port)
        assert seen == first
        second = write()
        server.reload_files()
        assert await asyncio.to_thread(rig.peer_certificate, server.port) == second != first
        cert.write_text("broken")
        server.reload_files()
        assert await asyncio.to_thread(rig.peer_certificate, server.port) == second


async def test_bad_certificate_files_stop_the_start(transport: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for path in (bad, tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=r"ext_proc\.tls_cert"):
            async with rig.picker(transport=transport, insecure=False, tls_cert=str(path)):
                pass


# Health and drain


async def health(channel: Any, name: str = SERVICE) -> int:
    call = channel.unary_unary("/grpc.health.v1.Health/Check")
    answer: bytes = await call(HealthCheckRequest(service=name).SerializeToString())
    return answer[1]


async def test_health_on_both_ports(transport: str) -> None:
    async with rig.picker(transport=transport, insecure=False) as server:
        for port in (None, server.health_port):
            async with rig.channel(server, port) as channel:
                for name in ("", "liveness", "readiness", SERVICE):
                    assert await health(channel, name) == 1
                assert await health(channel, "nobody") == 3
        async with rig.channel(server, server.health_port) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(rig.PROCESS)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_watcher_hears_of_the_drain(transport: str) -> None:
    async with (
        rig.picker(transport=transport) as server,
        rig.channel(server, server.health_port) as channel,
    ):
        call = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await call.read() == b"\x08\x01"
        assert await server.drain(timeout_s=5.0)
        assert await call.read() == b"\x08\x02"
        call.cancel()


async def test_a_drain_lets_streams_finish_and_opens_no_more(transport: str) -> None:
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(), envoy.request_body(BODY[:9], end=False))
        await until(lambda: server.picker.buffered == 9)
        drain = asyncio.ensure_future(server.drain(timeout_s=20.0))
        async with rig.channel(server, server.health_port) as probe:
            assert await health(probe) == 2
        await asyncio.sleep(0.2)
        late = rig.Stream(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await late.say(envoy.request_headers())
            await late.hear(1)
        await stream.say(envoy.request_body(BODY[9:]))
        head, piece = await stream.hear(2)
        assert head.endpoint in ENDPOINTS and piece.piece == (BODY, True)
        assert not drain.done()
        assert await stream.end() == 0
        assert await drain


async def test_a_drain_that_takes_too_long_cuts(transport: str) -> None:
    async with rig.picker(transport=transport) as server, rig.channel(server) as channel:
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(), envoy.request_body(BODY))
        await stream.hear(2)
        assert not await server.drain(timeout_s=0.2)
        await server.close()
        await until(lambda: server.picker.open == 0)
        assert server.picker.router.open_tickets == 0


# Starting


async def test_a_taken_port_is_one_line(transport: str) -> None:
    async with rig.picker(transport=transport) as server:
        with pytest.raises(PortTaken, match=f"127.0.0.1:{server.port}"):
            async with rig.picker(transport=transport, port=server.port):
                pass


async def test_names_of_replicas_are_resolved(transport: str) -> None:
    pools = [{"replicas": ["http://localhost:9"]}]
    async with (
        rig.picker(transport=transport, pools=pools) as server,
        rig.channel(server) as channel,
    ):
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(), envoy.request_body(BODY))
        head, _ = await stream.hear(2)
        assert head.endpoint == "127.0.0.1:9"
        assert await stream.end() == 0


async def test_what_the_transport_counts_is_exported(transport: str) -> None:
    name = transport
    async with rig.picker(transport=name) as server, rig.channel(server) as channel:
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(), envoy.request_body(envoy.CHAT % b"hello"))
        await stream.hear(2)
        text = server.running.metrics.render().decode()
        events = "warmlane_ext_proc_transport_events_total"
        assert f'{events}{{transport="{name}",event="streams"}} 1.0' in text
        opened = "warmlane_ext_proc_transport_open"
        assert f'{opened}{{transport="{name}",what="streams"}} 1.0' in text
        if name == "native":
            assert f'{events}{{transport="native",event="messages_in"}} 2.0' in text
            assert f'{events}{{transport="native",event="floods"}} 0.0' in text
            assert 'transport_bytes_total{transport="native",direction="in"}' in text
            assert 'transport_held_bytes{transport="native",when="peak"}' in text
        stream.call.cancel()
