"""The router in front of two real vLLM engines: `make test-vllm`.

Judged by the engines' own counters. Skipped, with the reason, where their wheels cannot be had.
"""

from __future__ import annotations

import asyncio
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError

from warmlane.router.config_load import normal_spec
from warmlane.router.doctor import Patient, examine
from warmlane.router.types import ReplicaSpec

from .vllm.chats import CHATS, TURNS, Script, Tally, send_all
from .vllm.engines import Engine, WheelsUnavailableError, install, make_model, wait_dead
from .vllm.router import Router, serving
from .vllm.storm import Storm, storm
from .vllm.tap import Tap

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

BLOCKS = 1024  # KV blocks of one engine: the whole script fits, as on a GPU
ADAPTERS = (("lora-0",), ("lora-0", "lora-1"))  # lora-1 lives on the second engine only
MIN_SHARE_OF_FRESH = 0.98
MIN_SHARE_OF_PROMPTS = 0.45  # of the lesser of two engines; prompts differ in length
MAX_SILENCE_S = 5.0
FROZEN_S = 6.0  # time-outs of the router while an engine is frozen


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    if platform.machine() != "x86_64":
        pytest.skip(f"NO REAL ENGINE TESTED: no CPU wheel for {platform.machine()}")
    try:
        python = install()
    except WheelsUnavailableError as reason:
        pytest.skip(f"NO REAL ENGINE TESTED: vLLM's wheels cannot be had here: {reason}")
    models = make_model(python)
    started = [Engine(python, models, n, names, BLOCKS) for n, names in enumerate(ADAPTERS)]
    try:
        for engine in started:
            engine.start()
        for engine in started:
            engine.wait_ready()
        yield started
    finally:
        for engine in started:
            engine.kill()


@dataclass
class Pass:
    """One pass of the script: what clients and engines counted."""

    name: str
    tally: Tally
    hits: list[float]  # tokens by engine, from vllm:prefix_cache_hits_total
    asked: list[float]  # tokens by engine, from vllm:prefix_cache_queries_total
    predicted: float | None = None
    actual: float | None = None

    def row(self, fresh: Pass) -> str:
        share = f"{sum(self.hits) / sum(fresh.hits):.1%}"
        told = "-" if not self.predicted else f"{self.predicted:.0f} / {self.actual:.0f}"
        ttft = f"{statistics.median(self.tally.ttft_s) * 1e3:.0f}"
        spread = " + ".join(f"{tokens:.0f}" for tokens in self.asked)
        return (
            f"{self.name:<12} {sum(self.asked):>8.0f} {sum(self.hits):>10.0f} {share:>9} "
            f"{self.tally.cached_tokens:>10} {told:>17} {ttft:>8} {spread:>17}"
        )


HEAD = (
    f"{'':<12} {'prompt':>8} {'from cache':>10} {'of fresh':>9} "
    f"{'in usage':>10} {'predicted/actual':>17} {'TTFT ms':>8} {'prompt by engine':>17}"
)


def counters(engines: list[Engine]) -> tuple[list[float], list[float]]:
    hits = [engine.counter("vllm:prefix_cache_hits_total") for engine in engines]
    return hits, [engine.counter("vllm:prefix_cache_queries_total") for engine in engines]


def play(name: str, engines: list[Engine], url: str, script: Script) -> Pass:
    """One pass over engines that remember nothing."""
    for engine in engines:
        engine.reset_cache()
    hits, asked = counters(engines)
    tally = asyncio.run(send_all(url, script))
    assert tally.requests == CHATS * TURNS
    now_hits, now_asked = counters(engines)
    return Pass(
        name,
        tally,
        [after - before for after, before in zip(now_hits, hits, strict=True)],
        [after - before for after, before in zip(now_asked, asked, strict=True)],
    )


def play_routed(policy: str, engines: list[Engine], script: Script) -> Pass:
    with serving([engine.url for engine in engines], policy) as router:
        result = play(policy, engines, router.url, script)
        result.predicted = router.total("warmlane_checked_predicted_hit_tokens_total")
        result.actual = router.total("warmlane_actual_hit_tokens_total")
        assert router.total("warmlane_leaked_tickets_total") == 0
        assert router.total("warmlane_open_tickets") == 0
        assert router.total("warmlane_fallbacks_total") == 0
    return result


def test_prompt_tokens_come_from_cache(engines: list[Engine]) -> None:
    """Two engines behind the router reuse what one engine with all requests would.

    And they share the prompts: of four beginnings each engine gets two, and the chats follow them.
    """
    script = Script()
    fresh = play("one engine", engines[:1], engines[0].url, script)
    # In an order that favours neither: engines, and a machine that others use, change with time.
    order = ("round-robin", "default", "default", "round-robin")
    passes = [play_routed(policy, engines, script) for policy in order]
    print("\n" + "\n".join([HEAD, *(each.row(fresh) for each in (fresh, *passes))]))

    turns = [each for each in passes if each.name == "round-robin"]
    routed = [each for each in passes if each.name == "default"]
    for each in routed:
        assert sum(each.hits) >= MIN_SHARE_OF_FRESH * sum(fresh.hits)
        assert all(sum(each.hits) > sum(other.hits) for other in turns)
        assert min(each.asked) >= MIN_SHARE_OF_PROMPTS * sum(each.asked)
    # clients, engines and router agree on what was reused
    for each in (fresh, *passes):
        assert each.tally.cached_tokens == pytest.approx(sum(each.hits), rel=0.02)
    for each in routed:
        assert each.actual == pytest.approx(sum(each.hits), rel=0.05)
        assert each.predicted is not None
        assert each.predicted == pytest.approx(each.actual, rel=0.25)


async def ask(router: Router, model: str, text: str) -> str:
    async with AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": text}],
            max_tokens=12,
            temperature=0,
        )
        return answer.choices[0].message.content or ""


async def listed(router: Router) -> set[str]:
    async with AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:
        return {model.id for model in (await client.models.list()).data}


def test_adapters_are_routed(engines: list[Engine]) -> None:
    with serving([engine.url for engine in engines]) as router:
        assert asyncio.run(listed(router)) == {"tiny", "lora-0", "lora-1"}
        before = [engine.counter("vllm:request_success_total") for engine in engines]
        answers = [asyncio.run(ask(router, "lora-1", f"question {n} of six")) for n in range(6)]
        after = [engine.counter("vllm:request_success_total") for engine in engines]
        served = [now - then for now, then in zip(after, before, strict=True)]
        assert served == [0, 6]  # only the second engine holds lora-1
        base = asyncio.run(ask(router, "tiny", "question 0 of six"))
        assert base != answers[0]  # the adapter, not the base model, had answered
        assert asyncio.run(ask(router, "lora-0", "question 0 of six"))
        with pytest.raises(NotFoundError):
            asyncio.run(ask(router, "lora-9", "nobody has this one"))


ON_DEMAND = {
    "mode": "load",
    "sources": {f"x-{n}": f"./lora-{n % 2}" for n in range(6)} | {"gone": "./nothing-is-here"},
    "slots": 3,
}


def on_demand(engines: list[Engine]) -> list[set[str]]:
    """What each engine lists of the adapters above."""
    return [engine.adapters() & ON_DEMAND["sources"].keys() for engine in engines]


def test_adapters_are_loaded_on_demand(engines: list[Engine]) -> None:
    """Into the slots that the built-in ones leave: two on the first engine, one on the second."""
    question = "question 0 of six"
    settings = {"pools": [{"adapters": ON_DEMAND}], "probe": {"models_interval_s": 2.0}}
    with serving([engine.url for engine in engines], settings=settings) as router:
        assert asyncio.run(listed(router)) >= {"tiny", "lora-1", "x-0", "x-5"}
        said = {name: asyncio.run(ask(router, name, question)) for name in ("lora-0", "lora-1")}

        def use(name: str) -> tuple[float, float]:
            """One request for it; loads and unloads so far."""
            assert asyncio.run(ask(router, name, question)) == said[f"lora-{int(name[-1]) % 2}"]
            held = on_demand(engines)
            assert len(held[0]) <= 2 and len(held[1]) <= 1 and name in held[0] | held[1]
            loads = router.total("warmlane_adapter_loads_total", result="loaded")
            return loads, router.total("warmlane_adapter_unloads_total", result="unloaded")

        names = [f"x-{n}" for n in range(6)]
        # Three slots: from the fourth on each load takes one out. Who has to go may vary, so that
        # the ones asked for next are those that went, and then those that stayed.
        assert [use(name) for name in names] == [(n + 1, max(0, n - 2)) for n in range(6)]
        for n in range(6):
            absent = next(name for name in names if name not in set.union(*on_demand(engines)))
            assert use(absent) == (7 + n, 4 + n)
        for name in set.union(*on_demand(engines)):
            assert use(name) == (12, 9)
        assert all("lora-0" in engine.adapters() for engine in engines), "not ours to unload"
        with pytest.raises(NotFoundError):
            asyncio.run(ask(router, "gone", "the allow-list has it, the disk has not"))
        # The engine forgets, as in a restart: nobody notices, and it gets them back.
        before = router.total("warmlane_adapter_loads_total", result="loaded")
        for engine, names in zip(engines, on_demand(engines), strict=True):
            for name in names:
                engine.unload(name)
        assert asyncio.run(ask(router, "x-1", question)) == said["lora-1"]
        loads = "warmlane_adapter_loads_total"
        assert (
            router.total(loads, result="loaded") + router.total(loads, result="restored") > before
        )
        assert router.total("warmlane_adapter_loads_total", result="not_found") == 2
        settled(router)
    for engine, names in zip(engines, on_demand(engines), strict=True):
        for name in names:
            engine.unload(name)


def test_a_burst_for_one_adapter_is_one_load_of_a_real_engine(engines: list[Engine]) -> None:
    settings = {"pools": [{"adapters": ON_DEMAND}]}

    async def burst(router: Router) -> list[str]:
        return await asyncio.gather(*(ask(router, "x-2", f"{n} of a burst") for n in range(8)))

    with serving([engines[0].url], settings=settings) as router:
        assert all(asyncio.run(burst(router)))
        assert router.total("warmlane_adapter_loads_total") == 1
        assert router.total("warmlane_adapter_requests_total", state="active") >= 0
        assert engines[0].adapters() == {"lora-0", "x-2"}
    engines[0].unload("x-2")


def test_the_doctor_finds_them_well(engines: list[Engine]) -> None:
    """Its own requests, answers and metrics; these engines publish no events, and it says so."""
    patients = [
        Patient(spec=normal_spec(ReplicaSpec(url=engine.url)), timeout_s=30.0) for engine in engines
    ]
    lines = asyncio.run(examine(patients))
    found = {(line.replica, line.check): line for line in lines}
    assert [line for line in lines if line.verdict == "fail"] == []
    for each in patients:
        name = each.spec.name
        assert found[name, "cached-tokens"].found.startswith("128 of 131")
        assert found[name, "lora"].verdict == "ok"
        assert found[name, "prefix-caching"].verdict == "ok"
        assert "enable_kv_cache_events" in found[name, "kv-events"].advice


@pytest.fixture(scope="module")
def taps(engines: list[Engine]) -> Iterator[list[Tap]]:
    started = [Tap(engine.port) for engine in engines]
    yield started
    for tap in started:
        tap.close()


def describe(seen: Storm) -> str:
    waits = [(fate, wait) for fate in seen.fates for wait in seen.waits(fate)]
    relay = sorted(wait.seconds for _, wait in waits if wait.what == "relay")
    broken = [fate for fate in seen.fates if fate.broken]
    told = [wait.seconds for fate, wait in waits if fate.broken and wait.what == "end"]
    moved = [wait.seconds for _, wait in waits if wait.what == "move"]
    longest = max((wait for _, wait in waits), key=lambda wait: wait.seconds)
    parts = [
        f"{len(seen.fates)} requests, {sum(fate.whole for fate in seen.fates)} whole",
        f"{len(seen.moved)} of them moved within {max(moved, default=0):.3f} s",
        f"{len(broken)} broken streams told so within {max(told, default=0):.3f} s",
        f"{len(relay)} events passed on in {statistics.median(relay) * 1e3:.2f} ms"
        f" (p99 {relay[int(len(relay) * 0.99)] * 1e3:.1f}, most {relay[-1] * 1e3:.0f} ms)",
        f"longest wait for the router {longest.seconds:.3f} s, of which it and the clients had no"
        f" core for {seen.hunger.within(longest.since, longest.until):.3f} s",
    ]
    return "; ".join(parts)


async def warm(engine: Engine) -> None:
    """The first request of a fresh engine takes seconds."""
    async with AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none") as client:
        await client.completions.create(model="tiny", prompt="warm", max_tokens=8)


def judge(seen: Storm, patience_s: float = 0.0) -> None:
    """What was asked for must hold, however hungry engines and router were on this machine.

    patience_s: what the router's own time-outs may take before it gives an engine up.
    """
    odd = [fate for fate in seen.fates if not (fate.whole or fate.broken or fate.left)]
    assert odd == []  # in particular: no error before the first byte
    late = []
    for fate in seen.fates:
        for wait in seen.waits(fate):
            allowed_s = MAX_SILENCE_S + (patience_s if wait.dropped else 0.0)
            if wait.seconds > allowed_s:
                hungry_s = seen.hunger.within(wait.since, wait.until)
                if wait.seconds > allowed_s + hungry_s:
                    late.append((fate.request, wait, hungry_s))
    assert late == []
    assert seen.moved, "no request without a byte was on the victim"
    assert any(fate.broken for fate in seen.fates), "no stream was on the victim"
    assert any(fate.whole and fate.started > seen.dead for fate in seen.fates)


def settled(router: Router) -> None:
    """Every ticket is closed, by its own end and not by age."""
    patience = time.monotonic() + 20
    while router.total("warmlane_open_tickets") and time.monotonic() < patience:
        time.sleep(0.1)  # it has to hear that clients went
    assert router.total("warmlane_open_tickets") == 0
    assert router.total("warmlane_leaked_tickets_total") == 0


@pytest.mark.parametrize("part", ["core", "all"])
def test_an_engine_dies_under_load(engines: list[Engine], taps: list[Tap], part: str) -> None:
    """Killed: the engine proper (its HTTP server says so, then exits), or everything at once."""
    struck: list[tuple[Engine, Tap]] = []

    def strike(tap: Tap) -> Callable[[], None]:
        victim = engines[taps.index(tap)]
        struck.append((victim, tap))
        if part == "core":
            return partial(wait_dead, victim.kill_core())
        victim.send(signal.SIGKILL)

        def gone() -> None:
            victim.kill()
            tap.refuse()

        return gone

    for engine in engines:
        engine.wait_ready()
        asyncio.run(warm(engine))
    with serving([tap.url for tap in taps]) as router:
        try:
            seen = asyncio.run(storm(router, taps, 2.0, 6.0, strike))
        finally:
            for victim, tap in struck:
                victim.kill()
                tap.refuse()
                victim.start()
                tap.listen()
        print(f"\nkilled {part}: {describe(seen)}")
        judge(seen)
        settled(router)
        struck[0][0].wait_ready()
        router.wait_ready(replicas=2)  # the probe takes it back by itself


def test_an_engine_freezes_under_load(engines: list[Engine], taps: list[Tap]) -> None:
    """Stopped, not dead: connections stay open and nothing comes. Time-outs and the probe tell."""
    struck: list[Engine] = []

    def strike(tap: Tap) -> Callable[[], None]:
        struck.append(engines[taps.index(tap)])
        struck[0].send(signal.SIGSTOP)
        return lambda: None

    for engine in engines:
        engine.wait_ready()
        asyncio.run(warm(engine))
    impatient: dict[str, Any] = {
        "timeouts": {"first_byte_s": FROZEN_S, "idle_s": FROZEN_S},
        "probe": {"interval_s": 1.0, "timeout_s": 2.0},
    }
    with serving([tap.url for tap in taps], settings=impatient) as router:
        try:
            seen = asyncio.run(storm(router, taps, 2.0, FROZEN_S + 6.0, strike))
            ejected = router.total("warmlane_ejections_total")
        finally:
            for engine in struck:
                engine.send(signal.SIGCONT)
        print(f"\nfrozen: {describe(seen)}")
        judge(seen, FROZEN_S)
        settled(router)
        assert ejected >= 1
        router.wait_ready(replicas=2)  # it is well again, without a restart
