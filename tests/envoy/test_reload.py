"""A new config in a running endpoint picker: SIGHUP and POST /admin/v1/reload."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import grpc.aio
import yaml

from tests.envoy import gateway as envoy
from tests.envoy import rig
from tests.envoy.test_command import FREE, Command, running, wait_until_ready
from tests.envoy_e2e.backend import MODEL, Backend
from warmlane.router.config_load import from_data
from warmlane.router.predicted import Predicted


def tree(*pools: tuple[str, str], **names: str) -> dict[str, Any]:
    """Pools of (name, endpoint), each asked for by its name, and by further names."""
    asked = {name: name for name, _ in pools} | names
    return {
        "pools": [{"name": name, "replicas": [f"http://{where}"]} for name, where in pools],
        "models": [{"name": name, "pool": pool, "model": MODEL} for name, pool in asked.items()],
    }


def chat(model: str) -> bytes:
    return (envoy.CHAT % b"hello").replace(b'"fake"', b'"%b"' % model.encode())


async def endpoint(channel: Any, model: str) -> str | int:
    """Where a request for this model goes, or the status of its refusal."""
    stream = rig.Stream(channel)
    await stream.say(envoy.request_headers(), envoy.request_body(chat(model)))
    [head] = await stream.hear(1)
    stream.call.cancel()
    return head.status if head.kind == "immediate_response" else head.endpoint


async def reloaded(command: Command, times: int) -> None:
    """Wait until the picker has read its config anew so often."""
    line = b'warmlane_reloads_total{result="ok"} %d.0' % times
    for _ in range(400):
        if line in await asyncio.to_thread(command.get, "/metrics"):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not reload")


async def test_pools_models_policies_and_replicas_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "warmlane.yaml"
    one, two, three = engines = [Backend() for _ in range(3)]
    await asyncio.gather(*(engine.start() for engine in engines))
    path.write_text(yaml.safe_dump(tree(("a", one.endpoint), ("b", two.endpoint))))
    arguments = ["--config", str(path), *FREE, "--insecure"]
    try:
        async with running(*arguments) as command:
            await asyncio.to_thread(wait_until_ready, command)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{command.port}") as channel:
                await reaches(channel, "a", one.endpoint)
                await reaches(channel, "b", two.endpoint)
                assert await endpoint(channel, "nick") == 404

                held = rig.Stream(channel)  # decided by a pool that goes
                await held.say(envoy.request_headers(), envoy.request_body(chat("b")))
                await held.hear(2)

                new = tree(("c", two.endpoint), ("a", three.endpoint), nick="c")
                new["pools"][1]["policy"] = "round-robin"
                path.write_text(yaml.safe_dump(new))
                command.process.send_signal(signal.SIGHUP)
                await reloaded(command, 1)
                await reaches(channel, "nick", two.endpoint)
                await reaches(channel, "c", two.endpoint)
                await reaches(channel, "a", three.endpoint)  # another replica
                assert await endpoint(channel, "b") == 404
                shown = json.loads(await asyncio.to_thread(command.get, "/admin/v1/config"))
                assert [pool["policy"] for pool in shown["pools"]] == ["default", "round-robin"]

                await held.say(
                    envoy.response_headers(served=two.endpoint), envoy.response_body(b"")
                )
                await held.hear(2)
                assert await held.end() == 0

                path.write_text("pools: [")  # changes nothing
                command.process.send_signal(signal.SIGHUP)
                assert await endpoint(channel, "c") == two.endpoint
                path.write_text(yaml.safe_dump(tree(("b", one.endpoint))))
                told = json.loads(await asyncio.to_thread(command.post, "/admin/v1/reload", {}))
                assert told == {"reloaded": True, "restart_needed": []}
                await reaches(channel, "b", one.endpoint)
                assert await endpoint(channel, "c") == 404
                await settled(command)
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


async def reaches(channel: Any, model: str, wanted: str) -> None:
    """Wait until the model's requests go there: the probe has to have found its replica."""
    found: str | int = 0
    for _ in range(400):
        found = await endpoint(channel, model)
        if found == wanted:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{model} goes to {found}, not to {wanted}")


async def settled(command: Command) -> None:
    """No ticket stays open, none is leaked."""
    opened: list[str] = []
    for _ in range(400):
        text = (await asyncio.to_thread(command.get, "/metrics")).decode()
        opened = [line for line in text.splitlines() if line.startswith("warmlane_open_tickets")]
        if all(line.endswith(" 0.0") for line in opened):
            assert "warmlane_leaked_tickets_total 0.0" in text
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"tickets stay open: {opened}")


async def test_tickets_of_a_pool_that_went_and_came_back() -> None:
    """At level 0 their ends are predicted after the pool of the same name is another one."""
    one, two, three = (f"http://127.0.0.{number}:9" for number in (1, 2, 3))
    pools = [{"name": "a", "replicas": [one, two]}, {"name": "b", "replicas": [three]}]
    async with rig.picker(pools=pools, response_level=0) as server, rig.channel(server) as channel:
        router, predicted = server.running.router, server.picker.predicted
        held = [rig.Stream(channel) for _ in range(4)]
        for stream in held:
            await stream.say(envoy.request_headers(response_mode=envoy.NONE))
            await stream.say(envoy.request_body(envoy.CHAT % b"hello"))
            await stream.hear(2)
        assert router.open_tickets == len(predicted) == 4
        options = {"ext_proc": {**_OPTIONS, "response_level": 0}, "probe": {"interval_s": 3600.0}}
        for now in ([pools[1]], [{**pools[0], "replicas": [two]}]):
            server.running.reload(from_data({"pools": now, **options}))
        rig.ready(server.running)
        again = rig.Stream(channel)
        await again.say(envoy.request_headers(response_mode=envoy.NONE))
        await again.say(envoy.request_body(envoy.CHAT % b"hello"))
        head, _ = await again.hear(2)
        assert head.endpoint == "127.0.0.2:9"
        assert router.open_tickets == len(predicted) == 5
        predicted.tick(1e9)
        assert router.open_tickets == len(predicted) == 0
        assert replicas_watched(predicted) == 1, "the gone pool is forgotten"


_OPTIONS = {"port": 0, "health_port": 0, "insecure": True, "transport": "grpcio"}


def replicas_watched(predicted: Predicted) -> int:
    return len(predicted._expected)
