"""The main job: the same slice through round robin and through warmlane, on the same replicas.

`measure` plays one slice through one router process and reads the engines' own counters; `pair`
does it for two policies with fresh caches. Used by `warmlane demo` and by the end-to-end tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from warmlane.router.sim.demo_fleet import Replicas, RouterProcess
from warmlane.router.sim.demo_slices import MODEL, Slice
from warmlane.router.sim.player import LagMeter, Result, play
from warmlane.router.sim.statistics import percentile
from warmlane.router.sim.timing import DEFAULT_PRESET, PRESETS
from warmlane.router.sim.traces import Workload

# A wall-clock time below this many times the event loops' own lateness says nothing.
LAG_MARGIN = 3.0
# Largest share of the mean TTFT that may pass outside the replicas (router, loops, sockets). It is
# a few hundred microseconds in truth, but the speed-up multiplies it; above this share the times
# tell more of this machine than of the routing.
OUTSIDE = 0.4
QUERIES, HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
BUSY = "warmlane_fake:engine_busy_seconds_total"
TTFT_SUM = "vllm:time_to_first_token_seconds_sum"
TTFT_COUNT = "vllm:time_to_first_token_seconds_count"
LAG, WAKES = "warmlane_fake:loop_lag_seconds_sum", "warmlane_fake:wakes_total"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one slice. Token counts are the engines' own and in their (shrunk) tokens;
    times are in replica seconds. lag_s: lateness of the event loops that measured, likewise;
    outside_s: mean TTFT of the client minus that of the engines."""

    policy: str
    requests: int
    errors: tuple[str, ...]
    prompt_tokens: int
    hit_tokens: int
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    latency_p50_s: float
    spread: float
    lag_s: float
    ttft_mean_s: float
    outside_s: float

    @property
    def hit_share(self) -> float:
        return self.hit_tokens / max(1, self.prompt_tokens)

    @property
    def void(self) -> bool:
        """The loops were so late that the times measure the machine, not the routing."""
        late = self.ttft_p90_s < LAG_MARGIN * self.lag_s
        return late or self.outside_s > OUTSIDE * self.ttft_mean_s


def replica_options(piece: Slice) -> list[str]:
    """Arguments of the embedded replicas for a slice."""
    options = ["--model", MODEL, "--speed", f"{piece.speed:g}", "--gpu", DEFAULT_PRESET]
    options += ["--scale", f"{piece.shrink:g}", "--tick-ms", "1"]
    if piece.kv_tokens:
        options += ["--blocks", str(max(2, int(piece.kv_tokens / piece.shrink) // 16))]
    return options


def kv_tokens(piece: Slice) -> int:
    """KV cache of one replica in real tokens."""
    return piece.kv_tokens or PRESETS[DEFAULT_PRESET].kv_tokens


async def measure(
    workload: Workload,
    piece: Slice,
    replicas: Replicas,
    router: RouterProcess,
    policy: str,
    on_result: Callable[[Result], None] | None = None,
) -> Measured:
    """Play the slice through a started router and compare the engines' counters."""
    before = await replicas.counters()
    meter = LagMeter()
    meter.start()
    try:
        results = await play(workload, router.url, piece.play(), on_result)
    finally:
        _, lag_p99_s = await meter.stop()
    after = await replicas.counters()

    def grown(name: str) -> list[float]:
        return [
            new.get(name, 0.0) - old.get(name, 0.0) for old, new in zip(before, after, strict=True)
        ]

    replica_lag_s = sum(grown(LAG)) / max(1.0, sum(grown(WAKES)))
    return report(
        policy,
        results,
        prompt_tokens=round(sum(grown(QUERIES))),
        hit_tokens=round(sum(grown(HITS))),
        busy=grown(BUSY),
        lag_s=max(lag_p99_s, replica_lag_s) * piece.speed,
        engine_ttft_s=sum(grown(TTFT_SUM)) / max(1.0, sum(grown(TTFT_COUNT))),
    )


def report(
    policy: str,
    results: Sequence[Result],
    *,
    prompt_tokens: int,
    hit_tokens: int,
    busy: Sequence[float],
    lag_s: float,
    engine_ttft_s: float,
) -> Measured:
    """Percentiles over the requests that were answered."""
    good = [result for result in results if not result.error]
    ttft = sorted(result.ttft_s for result in good)
    mean_s = sum(ttft) / max(1, len(ttft))
    return Measured(
        policy=policy,
        requests=len(results),
        errors=tuple(result.error for result in results if result.error),
        prompt_tokens=prompt_tokens,
        hit_tokens=hit_tokens,
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p90_s=percentile(ttft, 0.9),
        ttft_p99_s=percentile(ttft, 0.99),
        latency_p50_s=percentile(sorted(result.total_s for result in good), 0.5),
        spread=max(busy) * len(busy) / (sum(busy) or 1.0),
        lag_s=lag_s,
        ttft_mean_s=mean_s,
        outside_s=max(0.0, mean_s - engine_ttft_s),
    )


async def pair(
    workload: Workload, piece: Slice, *, replicas: int = 4, policies: Sequence[str] = ()
) -> list[Measured]:
    """Policies one after the other, fresh caches and a fresh router each; stops everything."""
    fleet = Replicas(replicas, replica_options(piece))
    found = []
    try:
        await fleet.start()
        for policy in policies or ("round-robin", "default"):
            await fleet.reset()
            router = RouterProcess(fleet.urls, policy)
            try:
                await router.start()
                found.append(await measure(workload, piece, fleet, router, policy))
            finally:
                await router.stop()
    finally:
        await fleet.stop()
    return found
