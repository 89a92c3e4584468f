"""LoRA adapters on demand: the whole server before fake engines, over real sockets.

What is loaded where is judged by the engines, never by the router's own books.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.common import until
from warmlane.router.config_load import from_data
from warmlane.router.serve import Server, start
from warmlane.router.sim.server import FakeEngine, FakeOptions

PROBE = {"interval_s": 0.2, "models_interval_s": 0.2}
SCRAPE = {"min_interval_s": 0.05, "max_interval_s": 0.1}


def options(**more: Any) -> FakeOptions:
    given = {"speed": 50.0, "enable_lora": True, "max_loras": 4, "model": "m", **more}
    return FakeOptions(**given)


class Rig:
    """Engines and the server before them."""

    def __init__(
        self, engines: list[FakeEngine], server: Server, session: aiohttp.ClientSession
    ) -> None:
        self.engines = engines
        self.server = server
        self.session = session

    async def ask(self, model: str, **more: Any) -> tuple[int, Any]:
        body = {"model": model, "prompt": "a question", "max_tokens": 4, **more}
        async with self.session.post(f"{self.server.url}/v1/completions", json=body) as answer:
            text = await answer.text()
            if answer.headers["content-type"].startswith("text/event-stream"):
                return answer.status, text
            return answer.status, json.loads(text)

    async def admin(self, path: str) -> Any:
        async with self.session.get(f"{self.server.admin_url}{path}") as answer:
            return await answer.json()

    def held(self) -> list[set[str]]:
        """What each engine has registered."""
        return [set(engine.models.adapters) for engine in self.engines]

    def total(self, family: str) -> dict[str, int]:
        """A counter by its last label."""
        found: dict[str, int] = {}
        for labels, count in self.server.running.metrics.counts[family].items():
            found[labels[-1]] = found.get(labels[-1], 0) + count
        return found


@asynccontextmanager
async def rig(*engines: FakeOptions, probe: Any = None, **adapters: Any) -> AsyncIterator[Rig]:
    started = [FakeEngine(each) for each in engines]
    for engine in started:
        await engine.start()
    given = {"mode": "load", "sources": {"ad-*": "/lora/"}, "load_s": 5.0, **adapters}
    data = {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "probe": probe or PROBE,
        "scrape": SCRAPE,
        "pools": [{"replicas": [engine.url for engine in started], "adapters": given}],
    }
    server = await start(from_data(data))
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while True:
                rows = await _admin(server, session)
                if all(row["state"] == "ready" for row in rows):
                    break
                await asyncio.sleep(0.02)
            yield Rig(started, server, session)
            assert server.router.open_tickets == 0
            for pool in server.router.pools.values():
                assert not any(pool.adapters.seat(each.slot).busy for each in pool)
    finally:
        await server.close()
        for engine in started:
            await engine.close()


async def _admin(server: Server, session: aiohttp.ClientSession) -> list[dict[str, Any]]:
    async with session.get(f"{server.admin_url}/admin/v1/replicas") as answer:
        rows: list[dict[str, Any]] = (await answer.json())["replicas"]
        return rows


async def test_a_missing_adapter_is_loaded_and_then_served() -> None:
    async with rig(options(), options()) as found:
        status, answer = await found.ask("ad-1")
        assert status == 200 and answer["model"] == "ad-1"
        assert sorted(map(len, found.held())) == [0, 1]
        home = next(e for e in found.engines if e.models.adapters)
        assert home.models.adapters == {"ad-1": "/lora/1"}
        for _ in range(5):
            assert (await found.ask("ad-1"))[0] == 200
        assert sum(engine.models.loads for engine in found.engines) == 1
        assert found.total("warmlane_adapter_loads_total") == {"loaded": 1}
        states = found.total("warmlane_adapter_requests_total")
        assert states.pop("absent") == 1 and sum(states.values()) == 5


async def test_a_burst_for_one_adapter_is_one_load() -> None:
    async with rig(options(adapter_load_s=0.3)) as found:
        answers = await asyncio.gather(*(found.ask("ad-1") for _ in range(30)))
        assert {status for status, _ in answers} == {200}
        assert found.engines[0].models.loads == 1


async def test_streams_wait_as_well() -> None:
    async with rig(options(adapter_load_s=0.1)) as found:
        status, text = await found.ask("ad-1", stream=True)
        assert status == 200 and text.endswith("data: [DONE]\n\n")


async def test_the_cold_ones_make_room_within_the_slots() -> None:
    # Loads as long everywhere: a free slot is then cheaper than one that has to be made.
    engine = options(max_loras=2, adapter_load_s=0.2)
    async with rig(engine, engine, slots=2) as found:
        for name in ("ad-1", "ad-2", "ad-3", "ad-4", "ad-5", "ad-6", "ad-7"):
            assert (await found.ask(name))[0] == 200
            assert max(map(len, found.held())) <= 2
        assert all("ad-7" in held or len(held) == 2 for held in found.held())
        assert found.total("warmlane_adapter_unloads_total") == {"unloaded": 3}


async def test_what_is_in_use_is_never_unloaded() -> None:
    """One slot, and a stream that holds it: the other adapter waits for its end."""
    engine = options(max_loras=1, speed=2.0)
    async with rig(engine, slots=1) as found:
        stream = asyncio.create_task(found.ask("ad-1", stream=True, max_tokens=200))
        await until(lambda: bool(found.engines[0].engine.running))
        other = asyncio.create_task(found.ask("ad-2"))
        await asyncio.sleep(0.3)
        assert found.held() == [{"ad-1"}] and not other.done()
        status, text = await stream
        assert status == 200 and text.endswith("data: [DONE]\n\n")
        assert (await other)[0] == 200
        assert found.held() == [{"ad-2"}]


async def test_a_wait_for_room_has_an_end() -> None:
    engine = options(max_loras=1, speed=1.0)
    async with rig(engine, slots=1, load_s=0.3) as found:
        stream = asyncio.create_task(found.ask("ad-1", stream=True, max_tokens=400))
        await until(lambda: bool(found.engines[0].engine.running))
        status, answer = await found.ask("ad-2")
        assert status == 503 and answer["error"]["type"] == "service_unavailable_error"
        assert found.total("warmlane_adapter_loads_total")["timeout"] == 1
        assert (await stream)[0] == 200


async def test_an_adapter_that_is_nowhere_is_a_404() -> None:
    async with rig(options(adapter_root="/else"), options(adapter_root="/else")) as found:
        for _ in range(3):
            status, answer = await found.ask("ad-1")
            assert status == 404 and answer["error"]["code"] == "model_not_found"
            assert answer["error"]["param"] == "model"
        assert found.total("warmlane_adapter_loads_total") == {"not_found": 2}, "asked once each"
        assert (await found.ask("m"))[0] == 200


async def test_an_adapter_that_one_engine_finds_is_loaded_there() -> None:
    async with rig(options(adapter_root="/else"), options(adapter_root="/lora")) as found:
        for name in ("ad-1", "ad-2", "ad-3"):
            assert (await found.ask(name))[0] == 200
        assert found.held() == [set(), {"ad-1", "ad-2", "ad-3"}]


async def test_an_engine_without_run_time_loading_is_left_out() -> None:
    async with rig(options(enable_lora=False), options()) as found:
        for name in ("ad-1", "ad-2", "ad-3"):
            assert (await found.ask(name))[0] == 200
        assert found.held() == [set(), {"ad-1", "ad-2", "ad-3"}]
        assert found.total("warmlane_adapter_loads_total").get("disabled", 0) <= 1


async def test_a_404_for_a_registered_adapter_moves_on() -> None:
    """The list is older than the truth: no client sees that one engine lost what another has."""
    rare = {**PROBE, "models_interval_s": 60.0}
    async with rig(options(loras=("ad-1",)), options(loras=("ad-1",)), probe=rare) as found:
        found.engines[0].models.adapters.clear()
        for _ in range(8):
            assert (await found.ask("ad-1"))[0] == 200
        rows = (await found.admin("/admin/v1/adapters"))["pools"]["default"]["replicas"]
        listed = [set(row["adapters"]) for row in rows.values()]
        assert listed == [set(), {"ad-1"}], "the router's list was corrected"
        assert found.total("warmlane_retries_total") == {"missing": 1}


async def test_the_only_engine_that_lost_it_loads_it_again() -> None:
    rare = {**PROBE, "models_interval_s": 60.0}
    async with rig(options(), probe=rare) as found:
        assert (await found.ask("ad-1"))[0] == 200
        found.engines[0].models.adapters.clear()
        assert (await found.ask("ad-1"))[0] == 200
        assert found.engines[0].models.loads == 2


async def test_read_only_never_loads() -> None:
    async with rig(options(loras=("ad-1",)), options(), mode="read-only") as found:
        for _ in range(4):
            assert (await found.ask("ad-1"))[0] == 200
        status, answer = await found.ask("ad-2")
        assert status == 404 and answer["error"]["code"] == "model_not_found"
        found.engines[0].models.adapters.clear()
        assert (await found.ask("ad-1"))[0] == 404, "now nobody has it"
        assert [engine.models.loads for engine in found.engines] == [0, 0]
        assert found.total("warmlane_adapter_loads_total") == {}


async def test_a_restarted_engine_gets_its_adapters_back() -> None:
    async with rig(options(), slots=4) as found:
        for name in ("ad-1", "ad-2"):
            assert (await found.ask(name))[0] == 200
        port = found.engines[0].port
        await found.engines[0].close()
        reborn = FakeEngine(options(port=port))
        await reborn.start()
        found.engines[0] = reborn
        await until(lambda: found.held() == [{"ad-1", "ad-2"}])
        assert found.total("warmlane_adapter_loads_total") == {"loaded": 2, "restored": 2}
        assert (await found.ask("ad-1"))[0] == 200


async def test_a_client_that_leaves_while_it_waits_leaves_nothing() -> None:
    async with rig(options(adapter_load_s=0.5)) as found:
        waiting = asyncio.create_task(found.ask("ad-1"))
        await until(lambda: found.server.router.open_tickets == 1)
        waiting.cancel()
        await until(lambda: found.server.router.open_tickets == 0)
        assert (await found.ask("ad-1"))[0] == 200
        assert found.engines[0].models.loads == 1, "the load went on for those who come"


async def test_somebody_elses_load_is_no_failure() -> None:
    rare = {**PROBE, "models_interval_s": 60.0}
    async with rig(options(), probe=rare) as found:
        found.engines[0].models.adapters["ad-1"] = "/lora/1"
        assert (await found.ask("ad-1"))[0] == 200
        assert found.total("warmlane_adapter_loads_total") == {"loaded": 1}


async def test_the_admin_interface_tells_states() -> None:
    async with rig(options(loras=("own",)), slots=3) as found:
        await found.ask("ad-1")
        told = (await found.admin("/admin/v1/adapters"))["pools"]["default"]
        assert told["mode"] == "load" and told["sources"] == {"ad-*": "/lora/"}
        (row,) = told["replicas"].values()
        assert row["slots"] == 3 and row["loads"] == 1 and row["failures"] == 0
        assert row["adapters"]["own"]["loaded_by"] == "engine"
        mine = row["adapters"]["ad-1"]
        assert mine["loaded_by"] == "router" and mine["state"] in ("registered", "active")
        assert mine["last_use_s"] >= 0
