"""The lab with LoRA adapters: requests for many of them over replicas with few slots each.

The router, its table of adapters and the compiled step loop are those of the lab; the loads take
place on the virtual clock as `feeds.adapters` makes them: one at a time per replica, after room was
made, while all adapters in use stay. A run is a pure function of its arguments.

The demand is that of Dynamo's public simulation of LoRA placement: Zipf popularity, Poisson
arrivals. What the router is compared with has its rule in a class here; all of them meet the same
requests, the same loads and the same engines.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect
from collections.abc import Callable
from functools import partial
from itertools import accumulate, count
from typing import Final

import msgspec

from warmlane._core.engine_step import Fleet, block_keys
from warmlane._core.hashing import digest
from warmlane.router.config import Config, Index, PoolConfig
from warmlane.router.config_adapters import Adapters
from warmlane.router.core import Router
from warmlane.router.interfaces import Candidates
from warmlane.router.lane import Prepared
from warmlane.router.prefix import PrefixKey
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.engine import ADAPTER_LOAD_S, ADAPTER_STEP
from warmlane.router.sim.timing import DEFAULT_PRESET, PRESETS, Timing
from warmlane.router.types import (
    Decision,
    Kind,
    LoadSnapshot,
    ModelList,
    Outcome,
    ReplicaSpec,
    Request,
)

FRONT_S: Final = 0.0156  # as in `lab`
BLOCK: Final = 16
SCRAPE_S: Final = 0.2
MODEL: Final = "model"
_HERE: Final = "warmlane.router.sim.lab_adapters"
_SYSTEM_BLOCKS: Final = 32  # each adapter has a system prompt of its own


class AdapterWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Demand and fleet.

    adapters, skew: how many, popularity 1 / rank ** skew. rate: requests a second. drift_s: the
    popularity of all adapters is dealt anew that often (0: never). replicas, slots: engines and
    max_loras of each. load_s: seconds of a load. prompt, output: (median, mean) of a log-normal in
    tokens, prompts behind a system prompt of 512.
    """

    adapters: int = 100
    skew: float = 1.0
    rate: float = 65.0 / 3.0
    seconds: float = 600.0
    drift_s: float = 0.0
    replicas: int = 8
    slots: int = 4
    load_s: float = 0.3
    prompt: tuple[float, float] = (400.0, 600.0)
    output: tuple[float, float] = (100.0, 150.0)
    timing: Timing = PRESETS[DEFAULT_PRESET]
    seed: int = 1


class AdapterRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run brought. ttft_s: in order of arrival. met: requests whose adapter was there."""

    ttft_s: list[float]
    requests: int
    loads: int
    unloads: int
    met: int

    @property
    def hit(self) -> float:
        """Share of requests that caused no load."""
        return 1.0 - self.loads / self.requests


class LlmdLora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """llm-d's lora-affinity-scorer: 1.0 active, 0.8 a free slot, 0.6 waiting, else 0.

    It sees the engine's metrics alone: adapters with requests, not those that are loaded.
    """

    def score(self, request: Request, candidates: Candidates) -> list[float] | None:
        adapter = candidates.adapter
        return [0.0 if each is None else _step(each.load, adapter) for each in candidates.replicas]


def _step(load: LoadSnapshot | None, adapter: str) -> float:
    if load is None:
        return 0.0
    if adapter in load.running_adapters:
        return 1.0
    if len(load.running_adapters | load.waiting_adapters) < (load.max_lora or 0):
        return 0.8
    return 0.6 if adapter in load.waiting_adapters else 0.0


class RendezvousHomes(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Homes by rendezvous hash, as many as an adapter's share of demand over all slots.

    After Dynamo's HRW placement: the share over a window of 90 s, at least one home each; of the
    homes, the one with the fewest requests.
    """

    slots: int = 32
    window_s: float = 90.0
    _counts: dict[str, float] = msgspec.field(default_factory=dict)
    _at: float = 0.0

    def score(self, request: Request, candidates: Candidates) -> list[float] | None:
        adapter, now, counts = candidates.adapter, candidates.now, self._counts
        if now - self._at > 3.0:  # its controller's step
            kept = max(0.0, 1.0 - (now - self._at) / self.window_s)
            for name in counts:
                counts[name] *= kept
            self._at = now
        counts[adapter] = counts.get(adapter, 0.0) + 1.0
        share = counts[adapter] / sum(counts.values())
        ranked = sorted(
            (digest(f"{adapter}/{each.name}".encode()), slot)
            for slot, each in enumerate(candidates.replicas)
            if each is not None and candidates.mask[slot]
        )
        homes = [slot for _, slot in ranked[: max(1, round(share * self.slots))]]
        scores = [0.0] * len(candidates)
        for slot in homes:
            scores[slot] = 1.0 / (1.0 + candidates.requests[slot])
        return scores


# Name -> what decides. All but the price let engines evict as they do: least recently used.
RIVALS: Final = {
    "warmlane": PoolConfig(),
    "llmd-lora": PoolConfig(scorers=[f"{_HERE}:LlmdLora"]),
    "llmd-mix": PoolConfig(
        scorers=[
            {"name": "warmlane.router.sim.baselines:LlmdWeighted", "weight": 7.0},
            {"name": f"{_HERE}:LlmdLora", "weight": 1.0},
        ]
    ),
    "rendezvous": PoolConfig(scorers=[f"{_HERE}:RendezvousHomes"]),
    "least-requests": PoolConfig(policy="least-requests"),
    "random": PoolConfig(policy="random"),
}
OWN: Final = ("warmlane", "default")  # the same; cold adapters give way by their demand
_LRU_S: Final = 1e-6  # half-life of demand at which only the last use counts


class _Live:
    """A request on its way."""

    __slots__ = ("adapter", "arrived", "decision", "first", "keys", "output", "prompt", "slot")

    def __init__(
        self, adapter: int, prompt: int, output: int, arrived: float, keys: array[int]
    ) -> None:
        self.keys = keys
        self.adapter = adapter
        self.prompt = prompt
        self.output = output
        self.arrived = arrived
        self.first = -1.0
        self.slot = -1
        self.decision: Decision


class AdapterLab:
    """One run of one rival (of RIVALS, else a policy by its name). `run` may be called once."""

    def __init__(self, rival: str, load: AdapterWorkload) -> None:
        self.load = load
        cold_s = Adapters().cold_s if rival in OWN else _LRU_S
        adapters = Adapters(
            mode="load", sources={"ad-*": "/"}, base=MODEL, slots=load.slots, cold_s=cold_s
        )
        specs = [ReplicaSpec(url=f"http://replica-{n}:8000") for n in range(load.replicas)]
        config = msgspec.structs.replace(
            RIVALS.get(rival) or PoolConfig(policy=rival),
            models=[MODEL],
            replicas=specs,
            adapters=adapters,
            capacity_tokens=load.timing.kv_tokens,
        )
        self.router = Router(Config(pools=[config], index=Index(max_bytes=0)))
        self.pool = self.router.pools[config.name]
        self.lane = self.router.lanes[config.name]
        self.table = self.pool.adapters
        for slot in range(load.replicas):
            self.pool.set_models(slot, ModelList(models=frozenset({MODEL})))
        self.fleet = Fleet([_constants(load)] * load.replicas)
        self._ties = Chance(load.seed + 1)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._live: dict[int, _Live] = {}
        self._ids = count(1)
        self._open = 0
        # By slot: who waits for which load, in order, and whether a call is under way.
        self._lines: list[dict[str, list[_Live]]] = [{} for _ in range(load.replicas)]
        self._calling = [False] * load.replicas
        self._ttft: list[tuple[float, float]] = []
        self._loads = self._unloads = self._met = 0

    def run(self) -> AdapterRun:
        """Play to the end."""
        arrivals = demand(self.load)
        self._open = len(arrivals)
        for live in arrivals:
            self._at(live.arrived, partial(self._arrive, live))
        self._at(0.0, self._scrape)
        fleet, events = self.fleet, self._events
        while self._open:
            limit = events[0][0] if events else float("inf")
            while fleet.advance(limit):
                self._noticed(fleet.now)
                if events and events[0][0] < limit:
                    limit = events[0][0]
            if not events:
                break
            now, _, call = heapq.heappop(events)
            call(now)
        return AdapterRun(
            ttft_s=[seconds for _, seconds in sorted(self._ttft)],
            requests=len(arrivals),
            loads=self._loads,
            unloads=self._unloads,
            met=self._met,
        )

    def _at(self, when: float, call: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), call))

    def _arrive(self, live: _Live, now: float) -> None:
        name = f"ad-{live.adapter}"
        request = Request(kind=Kind.COMPLETIONS, model=name, max_tokens=live.output, stream=True)
        target = self.router.catalog.resolve(request, 0)
        key = PrefixKey(live.keys, "tokens", live.prompt, BLOCK, 1)  # type: ignore[arg-type]
        prepared = Prepared(request, target, self.lane, key)
        decision = live.decision = self.router.decide_prepared(prepared, now, self._ties.bits())
        live.slot = decision.choices[0]
        self.router.sent(decision.ticket, live.slot, now)
        if self.table.has(live.slot, name):
            self._met += 1
            self._at(now + FRONT_S, partial(self._enter, live))
            return
        self._lines[live.slot].setdefault(name, []).append(live)
        self._pump(live.slot, now)

    def _pump(self, slot: int, now: float) -> None:
        """The next load of a replica, once there is room; the oldest wish first."""
        lines, table = self._lines[slot], self.table
        if self._calling[slot] or not lines:
            return
        name = next(iter(lines))
        if table.full(slot):
            victim = table.victim(slot, now)
            if victim is None:  # all are in use: the end of a request comes here again
                return
            table.unloaded(slot, victim)
            self._unloads += 1
        table.loading(slot, name, now)
        self._calling[slot] = True
        self._at(now + self.load.load_s, partial(self._loaded, slot, name))

    def _loaded(self, slot: int, name: str, now: float) -> None:
        self._calling[slot] = False
        self._loads += 1
        self.table.loaded(slot, name, self.load.load_s)
        for live in self._lines[slot].pop(name):
            self._enter(live, now)
        self._pump(slot, now)

    def _enter(self, live: _Live, now: float) -> None:
        number = next(self._ids)
        self._live[number] = live
        fleet, slot = self.fleet, live.slot
        fleet.add(slot, number, live.prompt, live.output, live.keys, now, adapter=live.adapter + 1)

    def _noticed(self, now: float) -> None:
        slots = set()
        for number in self.fleet.first_tokens:
            live = self._live[number]
            live.first = now
            self.router.first_token(live.decision.ticket, now)
        for number, cached in self.fleet.finished:
            live = self._live.pop(number)
            outcome = Outcome(
                prompt_tokens=live.prompt, cached_tokens=cached, output_tokens=live.output
            )
            self.router.close(live.decision.ticket, outcome, now)
            self._ttft.append((live.arrived, live.first - live.arrived))
            self._open -= 1
            slots.add(live.slot)
        for slot in slots:
            self._pump(slot, now)

    def _scrape(self, now: float) -> None:
        """What the replicas' metrics tell."""
        running: list[set[str]] = [set() for _ in range(self.load.replicas)]
        for live in self._live.values():
            running[live.slot].add(f"ad-{live.adapter}")
        for slot, names in enumerate(running):
            waiting, busy, usage = self.fleet.load(slot)
            snapshot = LoadSnapshot(
                taken_at=now,
                waiting=waiting,
                running=busy,
                kv_usage=usage,
                max_lora=self.load.slots,
                running_adapters=frozenset(names),
                waiting_adapters=frozenset(self._lines[slot]),
            )
            self.pool.update_load(slot, snapshot)
            self._pump(slot, now)  # who was in use by the scrape before may not be any more
        self.router.maintain(now)
        if self._open:
            self._at(now + SCRAPE_S, self._scrape)


def demand(load: AdapterWorkload) -> list[_Live]:
    """All requests of a run, by arrival; every rival meets the same."""
    chance = Chance(load.seed)
    sums = list(accumulate((rank + 1) ** -load.skew for rank in range(load.adapters)))
    dealt, dealt_at = list(range(load.adapters)), 0.0
    chance.shuffle(dealt)
    found: list[_Live] = []
    now = chance.exponential(1.0 / load.rate)
    while now < load.seconds:
        if load.drift_s and now - dealt_at >= load.drift_s:
            chance.shuffle(dealt)
            dealt_at = now
        adapter = dealt[bisect(sums, chance.uniform() * sums[-1])]
        own = max(1, round(chance.lognormal(*load.prompt)))
        output = max(1, round(chance.lognormal(*load.output)))
        prompt = _SYSTEM_BLOCKS * BLOCK + own
        runs = [(1 << 60 | adapter << 32, _SYSTEM_BLOCKS), (len(found) + 1 << 32, own // BLOCK)]
        keys = block_keys(runs, 1, prompt // BLOCK)
        found.append(_Live(adapter, prompt, output, now, keys))
        now += chance.exponential(1.0 / load.rate)
    return found


def _constants(load: AdapterWorkload) -> dict[str, float]:
    timing = load.timing
    given: dict[str, float] = msgspec.structs.asdict(timing)
    return given | {
        "adapter_step": ADAPTER_STEP,
        "adapter_load_s": ADAPTER_LOAD_S,
        "blocks": timing.kv_tokens // BLOCK,
        "block_size": BLOCK,
        "max_num_seqs": timing.max_seqs,
        "max_num_batched_tokens": timing.step_tokens,
        "max_loras": load.slots,
    }
