"""`warmlane serve` as a process: what it prints, refuses, reloads, and how it goes down."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.router.feeds.engine import Engine
from warmlane.router.cli import main

ROOT = Path(__file__).parents[2]
STREAM = {"model": "tiny", "prompt": "x" * 300, "stream": True}


async def launch(*words: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "warmlane.router.cli",
        "serve",
        *words,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"},
    )


class Served:
    """A running `warmlane serve` and a client of its two ports."""

    def __init__(self, process: Process, banner: str, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.banner = banner
        self.session = session
        self.url, self.admin = re.findall(r" on (https?://\S+)", banner)
        self.log = ""

    async def get(self, url: str) -> tuple[int, Any]:
        async with self.session.get(url) as response:
            return response.status, await response.json(content_type=None)

    def threads(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/task").iterdir())

    async def is_ready(self) -> bool:
        return (await self.get(f"{self.admin}/readyz"))[0] == 200

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while not await self.is_ready():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    async def replicas(self) -> dict[str, str]:
        _, data = await self.get(f"{self.admin}/admin/v1/replicas")
        return {row["name"]: row["state"] for row in data["replicas"]}

    async def has(self, names: dict[str, str]) -> None:
        async with asyncio.timeout(20):
            while await self.replicas() != names:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    async def end(self) -> int:
        """Wait for the process; its exit status, with the log in `log`."""
        async with asyncio.timeout(20):
            _, err = await self.process.communicate()
        self.log = err.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def serving(*words: str) -> AsyncIterator[Served]:
    process = await launch("--port", "0", "--admin-port", "0", *words)
    session = aiohttp.ClientSession()
    try:
        assert process.stdout is not None
        lines = []
        async with asyncio.timeout(20):
            while line := (await process.stdout.readline()).decode():
                lines.append(line)
                if "/admin/v1/replicas" in line:
                    break
        if not lines:
            _, err = await process.communicate()
            raise AssertionError(f"it did not start: {err.decode()}")
        yield Served(process, "".join(lines), session)
    finally:
        await session.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # pipes of a killed process


async def test_the_quick_start_works_as_printed() -> None:
    async with Engine() as engine, serving("--replica", engine.url) as served:
        await served.ready()
        commands = re.findall(r"^  curl (\S+)$", served.banner, re.M)
        assert len(commands) == 2
        status, models = await served.get(commands[0])
        assert status == 200
        assert [model["id"] for model in models["data"]] == ["tiny"]
        status, replicas = await served.get(commands[1])
        assert status == 200
        assert replicas["replicas"][0]["state"] == "ready"
        async with served.session.post(f"{served.url}/v1/completions", json=STREAM) as response:
            assert response.status == 200
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        async with served.session.get(f"{served.admin}/metrics") as response:
            text = await response.text()
        name = f"127.0.0.1:{engine.port}"
        assert (
            f'warmlane_requests_total{{pool="default",replica="{name}",kind="completions",'
            'status="200"} 1.0' in text
        )
        served.process.send_signal(signal.SIGINT)
        assert await served.end() == 0
        assert "event=stopped how=drained" in served.log
        assert "xxx" not in served.log


async def test_sigterm_drains_and_tells_readiness_first() -> None:
    async with Engine() as engine:
        engine.gate.clear()
        async with serving("--replica", engine.url, "--drain-delay-s", "0.5") as served:
            await served.ready()
            response = await served.session.post(f"{served.url}/v1/completions", json=STREAM)
            first = await response.content.readuntil(b"\n\n")
            served.process.send_signal(signal.SIGTERM)
            status, why = 200, {}
            async with asyncio.timeout(10):
                while status == 200:
                    status, why = await served.get(f"{served.admin}/readyz")
            assert (status, why["why"]) == (503, "draining")
            async with served.session.get(f"{served.url}/v1/models") as models:
                assert models.status == 200  # the listener is still there during the delay
            await asyncio.sleep(0.7)
            with pytest.raises(aiohttp.ClientConnectorError):
                async with aiohttp.ClientSession() as other:
                    await other.get(f"{served.url}/v1/models")
            engine.gate.set()
            rest = await response.content.read()
            assert (first + rest).count(b"data: ") == 5
            assert rest.endswith(b"data: [DONE]\n\n")
            response.close()
            assert await served.end() == 0
            assert "event=draining inflight=1" in served.log
            assert "event=stopped how=drained" in served.log


@pytest.mark.parametrize("how", ["second signal", "end of time"])
async def test_a_drain_can_be_cut(how: str) -> None:
    async with Engine() as engine:
        engine.gate.clear()
        limit = "60" if how == "second signal" else "0.3"
        async with serving("--replica", engine.url, "--drain-s", limit) as served:
            await served.ready()
            response = await served.session.post(f"{served.url}/v1/completions", json=STREAM)
            await response.content.readuntil(b"\n\n")
            served.process.send_signal(signal.SIGTERM)
            if how == "second signal":
                async with asyncio.timeout(10):
                    while (await served.get(f"{served.admin}/readyz"))[0] == 200:
                        pass
                served.process.send_signal(signal.SIGTERM)
            assert await served.end() == 0
            assert "event=stopped how=cut" in served.log
            response.close()
        engine.gate.set()


async def test_sighup_follows_the_config_file(tmp_path: Path) -> None:
    async with Engine() as one, Engine() as two:
        path = tmp_path / "warmlane.yaml"

        def write(*urls: str, **more: Any) -> None:
            path.write_text(yaml.safe_dump({"pools": [{"replicas": list(urls)}], **more}))

        write(one.url)
        async with serving("--config", str(path)) as served:
            await served.ready()
            write(one.url, two.url, zone="b")
            served.process.send_signal(signal.SIGHUP)
            names = {f"127.0.0.1:{engine.port}": "ready" for engine in (one, two)}
            await served.has(names)
            path.write_text("pools: 7\n")
            served.process.send_signal(signal.SIGHUP)
            async with served.session.post(f"{served.admin}/admin/v1/reload") as response:
                assert response.status == 400
                assert "pools" in (await response.json())["error"]["message"]
            assert await served.replicas() == names
            write(one.url, listen={"backlog": 7})
            async with served.session.post(f"{served.admin}/admin/v1/reload") as response:
                assert (await response.json())["restart_needed"] == ["listen"]
            del names[f"127.0.0.1:{two.port}"]
            await served.has(names)
            served.process.send_signal(signal.SIGTERM)
            assert await served.end() == 0
            assert "event=reload result=ok restart_needed=none" in served.log
            assert "event=reload result=ok restart_needed=listen" in served.log
            assert "event=reload result=failed" in served.log


async def test_sighup_takes_a_pool_away_under_a_stream_and_adds_another(tmp_path: Path) -> None:
    """The stream ends whole; names, policy and time-outs of the new file hold from then on."""
    async with Engine() as one, Engine() as two:
        two.models = {"data": [{"id": "new"}]}
        path = tmp_path / "warmlane.yaml"
        old = {"name": "old", "replicas": [one.url]}
        new = {"name": "new", "replicas": [two.url], "policy": "least-requests"}
        alias = {"name": "alias", "pool": "new", "model": "new"}
        path.write_text(yaml.safe_dump({"pools": [old]}))
        async with serving("--config", str(path)) as served:
            await served.ready()
            one.gate.clear()
            asked = f"{served.url}/v1/completions"
            async with served.session.post(asked, json=STREAM) as stream:
                assert stream.status == 200
                text = await stream.content.readuntil(b"\n\n")
                more = {"pools": [new], "models": [alias], "limits": {"body_bytes": 1000}}
                path.write_text(yaml.safe_dump(more))
                served.process.send_signal(signal.SIGHUP)
                await served.has({f"127.0.0.1:{two.port}": "ready"})
                async with served.session.post(asked, json={**STREAM, "model": "alias"}) as other:
                    assert other.status == 200
                    assert (await other.read()).endswith(b"data: [DONE]\n\n")
                async with served.session.post(asked, json=STREAM) as gone:
                    assert gone.status == 404
                async with served.session.post(asked, json={"prompt": "x" * 2000}) as large:
                    assert large.status == 413
                one.gate.set()
                text += await stream.read()
                assert text.endswith(b"data: [DONE]\n\n") and b"error" not in text
            async with served.session.get(f"{served.admin}/metrics") as response:
                metrics = await response.text()
            assert 'warmlane_open_tickets{pool="new"} 0.0' in metrics
            assert "warmlane_leaked_tickets_total 0.0" in metrics
            served.process.send_signal(signal.SIGTERM)
            assert await served.end() == 0
            assert "event=pool_removed pool=old inflight=1" in served.log


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
async def test_addresses_need_no_thread_and_names_are_still_resolved() -> None:
    async with Engine() as engine:
        for url, threads in ((engine.url, 1), (engine.url.replace("127.0.0.1", "localhost"), 2)):
            async with serving("--replica", url) as served:
                await served.ready()
                async with served.session.post(f"{served.url}/v1/completions", json=STREAM) as got:
                    assert (await got.read()).endswith(b"data: [DONE]\n\n")
                assert min(served.threads(), 2) == threads


@pytest.mark.parametrize("flag", ["--port", "--admin-port"])
async def test_a_taken_port_is_one_clear_line_and_status_1(flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = "--admin-port" if flag == "--port" else "--port"
        process = await launch("--replica", "http://127.0.0.1:9", flag, str(port), other, "0")
        async with asyncio.timeout(20):
            out, err = await process.communicate()
    assert process.returncode == 1
    assert out == b""
    lines = [line for line in err.decode().splitlines() if not line.startswith("time=")]
    assert len(lines) == 1
    assert lines[0].startswith(f"warmlane serve: cannot listen on 127.0.0.1:{port}: ")
    assert "in use" in lines[0]


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """`run` inside this process sets up logging, as the command may; other tests must not see."""
    root, ours = logging.getLogger(), logging.getLogger("warmlane")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


def run(*words: str) -> int:
    try:
        return main(["serve", *words])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no replica to route to"),
        (["--replica", "ftp://x"], "ftp://x"),
        (["--replica", "http://a:1/v1"], "http://a:1/v1"),
        (["--replica", "http://a:1", "--policy", "nonsense"], "nonsense"),
        (["--replica", "http://a:1", "--port", "70000"], "70000"),
        (["--replica", "http://a:1", "--port", "x"], "--port"),
        (["--replica", "http://a:1", "--drain-s", "-1"], "drain_s"),
        (["--replica", "http://a:1", "--drain-delay-s", "-1"], "drain-delay-s"),
        (["--replica", "http://a:1", "--log-level", "loud"], "loud"),
        (["--config", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
        (["--replica", "http://a:1", "--engine-api-key-file", "/no/key"], "engine_api_key_file"),
        (["--replica", "http://a:1", "--api-key-file", "/no/key"], "/no/key"),
        (["--replica", "http://a:1", "--admin-host", "0.0.0.0", "--port", "0"], "admin.token_file"),
        (["--nonsense"], "--nonsense"),
    ],
)
@pytest.mark.usefixtures("logging_restored")
def test_bad_input_is_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("time=")]
    assert len(lines) == 1, error
    assert lines[0].startswith("warmlane serve: ")
    assert message in lines[0]


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for option in (
        *("--replica", "--host", "--port", "--admin-port", "--config", "--policy"),
        *("--api-key-file", "--engine-api-key-file", "--zone", "--debug-headers"),
        *("--drain-s", "--drain-delay-s", "--log-level", "--version"),
    ):
        assert option in text
    assert "None" not in text
    assert "SUPPRESS" not in text


async def test_a_key_is_asked_for_and_shown_in_the_hint(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-client\n")
    async with Engine() as engine:
        words = ("--replica", engine.url, "--api-key-file", str(keys))
        async with serving(*words) as served:
            await served.ready()
            assert "-H 'Authorization: Bearer KEY'" in served.banner
            assert (await served.get(f"{served.url}/v1/models"))[0] == 401
            headers = {"Authorization": "Bearer sk-client"}
            async with served.session.get(f"{served.url}/v1/models", headers=headers) as response:
                assert response.status == 200
            served.process.send_signal(signal.SIGTERM)
            assert await served.end() == 0
            assert "sk-client" not in served.log


async def test_a_share_and_the_switch_at_run_time() -> None:
    """As in ext-proc: watched, then 1, 10 and 100 % of the traffic, then least in-flight."""
    async with (
        Engine() as one,
        Engine() as two,
        serving("--replica", one.url, "--replica", two.url, "--shadow") as served,
    ):
        await served.ready()
        await served.has({url.removeprefix("http://"): "ready" for url in (one.url, two.url)})

        async def switch(**wanted: object) -> None:
            url = f"{served.admin}/admin/v1/shadow"
            async with served.session.post(url, json=wanted) as response:
                assert response.status == 200

        async def compared(count: int) -> int:
            """Of so many requests those that the policy did not decide."""
            url = f"{served.admin}/admin/v1/shadow"
            before = (await served.get(url))[1]["models"].get("tiny", {}).get("decisions", 0)
            for _ in range(count):
                body = {"model": "tiny", "prompt": "x" * 300}
                async with served.session.post(f"{served.url}/v1/completions", json=body) as r:
                    assert r.status == 200
                    await r.read()
            after = (await served.get(url))[1]["models"].get("tiny", {}).get("decisions", 0)
            return int(after - before)

        assert await compared(20) == 20
        await switch(mode="active", share=0.01)
        assert 180 <= await compared(200) <= 200  # 198 by the mean, deviation 1.4
        await switch(share=0.1)
        assert 150 <= await compared(200) <= 198  # 180, deviation 4.2
        await switch(share=1.0)
        assert await compared(20) == 0
        await switch(mode="least-requests")
        assert await compared(20) == 20
