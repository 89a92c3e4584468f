"""Two `warmlane serve` before the same engines, joined by a real server: no hit is lost by it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from tests.share_server import Server
from warmlane.router.sim.client import Client
from warmlane.router.sim.demo_fleet import Replicas, RouterProcess, read_metrics
from warmlane.router.sim.player import Play, Result, play
from warmlane.router.sim.workload import cut, generate

HOW = Play(model="fake", output_shrink=8.0, rate=20.0, think_cap_s=0.5)


async def played(replicas: Replicas, routers: int, config: Path) -> list[Result]:
    """Chats whose turns go to the routers one after the other; fresh caches."""
    await replicas.reset()
    async with AsyncExitStack() as stack:
        started = [
            RouterProcess(replicas.urls, "default", options=["--config", str(config)])
            for _ in range(routers)
        ]
        for router in started:
            stack.push_async_callback(router.stop)
            await router.start()
        for router in started:
            await until_heard(router, routers - 1)
        made = cut(generate("agent", 8, seed=2), turns=6)
        return await play(made, [router.url for router in started], HOW)


async def until_heard(router: RouterProcess, peers: int) -> None:
    admin = Client(router.admin_url)
    for _ in range(400):
        page = read_metrics((await admin.get("/metrics")).body.decode())
        if page.get("warmlane_share_peers") == peers:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError(f"{router.url} does not hear {peers} others")
    await admin.close()


def hit_share(results: list[Result]) -> float:
    assert not [result.error for result in results if result.error]
    return sum(each.cached for each in results) / sum(each.prompt for each in results)


async def test_two_routers_hit_as_much_as_one(tmp_path: Path) -> None:
    server = Server("valkey")
    replicas = Replicas(4, ["--model", HOW.model, "--gpu", "llama-3.1-8b/h100"])
    config = tmp_path / "share.yaml"
    config.write_text(f"share: {{url: '{server.url}'}}\n")
    try:
        server.start()
        await replicas.start()
        one = hit_share(await played(replicas, 1, config))
        two = hit_share(await played(replicas, 2, config))
    finally:
        await replicas.stop()
        server.close()
    assert one > 0.5 and two > 0.9 * one
