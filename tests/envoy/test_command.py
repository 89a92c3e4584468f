"""`warmlane ext-proc` as a process: its arguments, its banner, its way down."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc.aio

from tests.envoy import gateway as envoy
from tests.envoy import rig
from tests.envoy_e2e.backend import MODEL, Backend
from warmlane.router.cli import main
from warmlane.router.config_load import from_data

BODY = (envoy.CHAT % b"hello there").replace(b"fake", MODEL.encode())
FREE = ["--port", "0", "--health-port", "0", "--metrics-port", "0"]
REPLICA = ["--replica", "http://127.0.0.1:9"]


class Command:
    """A running command, its ports read from the banner."""

    def __init__(self, process: asyncio.subprocess.Process, banner: str) -> None:
        self.process = process
        self.banner = banner
        ports = [int(each) for each in re.findall(r":(\d+)(?= \(|\n)", banner)]
        self.port, self.health_port, self.admin_port = ports[:3]

    def get(self, path: str) -> bytes:
        with urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
            body: bytes = answer.read()
            return body

    def post(self, path: str, data: object) -> bytes:
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        request = Request(url, json.dumps(data).encode(), method="POST")
        with urlopen(request, timeout=10) as answer:
            body: bytes = answer.read()
            return body


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "warmlane", "ext-proc", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        lines = [await asyncio.wait_for(process.stdout.readline(), 30) for _ in range(4)]
        yield Command(process, b"".join(lines).decode())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def with_engine(*arguments: str) -> AsyncIterator[tuple[Command, str]]:
    """A running command whose one replica is ready, and the replica's address."""
    engine = Backend()
    await engine.start()
    try:
        async with running("--replica", f"http://{engine.endpoint}", *FREE, *arguments) as command:
            await asyncio.to_thread(wait_until_ready, command)
            yield command, engine.endpoint
    finally:
        await engine.stop()


def wait_until_ready(command: Command) -> None:
    for _ in range(400):
        try:
            command.get("/readyz")
        except HTTPError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the replica never became ready")


async def test_a_stream_through_the_process_and_a_drain() -> None:
    async with with_engine("--insecure", "--transport", "grpcio") as (command, endpoint):
        assert "plaintext, grpcio transport" in command.banner
        async with grpc.aio.insecure_channel(f"127.0.0.1:{command.port}") as channel:
            stream = rig.Stream(channel)
            await stream.say(envoy.request_headers(), envoy.request_body(BODY[:5], end=False))
            await asyncio.to_thread(wait_for_stream, command)
            command.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            await stream.say(envoy.request_body(BODY[5:]))
            head, piece = await stream.hear(2)
            assert head.endpoint == endpoint and piece.piece == (BODY, True)
            assert await stream.end() == 0
        assert await asyncio.wait_for(command.process.wait(), 20) == 0


def wait_for_stream(command: Command) -> None:
    for _ in range(1000):
        if b"warmlane_ext_proc_open_streams 1.0" in command.get("/metrics"):
            return
    raise AssertionError("no stream arrived")


async def test_the_arguments_of_the_gateway_suite() -> None:
    arguments = ["--pool-name", "pool-a", "--pool-namespace", "default", "--zap-encoder", "json"]
    ports = ["--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0"]
    async with running(*REPLICA, *arguments, *ports, "--test-headers") as command:
        assert "TLS" in command.banner
        assert b'pool="pool-a"' in await asyncio.to_thread(command.get, "/metrics")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{command.health_port}") as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert await check(b"") == b"\x08\x01"


async def test_the_switch_is_at_the_admin_port() -> None:
    async with with_engine("--insecure", "--shadow") as (command, endpoint):
        path = "/admin/v1/shadow"
        before = json.loads(await asyncio.to_thread(command.get, path))
        assert before == {"mode": "shadow", "share": 1.0, "models": {}}
        wanted = {"mode": "active", "share": 0.1}
        assert json.loads(await asyncio.to_thread(command.post, path, wanted)) == wanted
        async with grpc.aio.insecure_channel(f"127.0.0.1:{command.port}") as channel:
            await asyncio.to_thread(command.post, path, {"share": 1.0})
            stream = rig.Stream(channel)
            await stream.say(envoy.request_headers(), envoy.request_body(BODY))
            head, _ = await stream.hear(2)
            assert head.endpoint == endpoint


async def test_a_taken_port_is_status_1() -> None:
    async with running(*REPLICA, *FREE, "--insecure") as command:
        arguments = ["--port", str(command.port), "--health-port", "0", "--metrics-port", "0"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "warmlane", "ext-proc", *REPLICA, *arguments, "--insecure"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert f"cannot listen on 127.0.0.1:{command.port}" in error.decode()


def test_nowhere_to_route_to_is_status_2(capsys: object) -> None:
    del capsys
    assert main(["ext-proc", *FREE]) == 2


def test_the_section_of_the_config_file(tmp_path: Path) -> None:
    options = from_data({"ext_proc": {"endpoints": "ordered", "response_level": 2}}).ext_proc
    assert (options.endpoints, options.response_level) == ("ordered", 2)
    assert options.port == 9002 and options.health_port == 9003
