"""GET /metrics of the fake engine: vLLM's families that a router or a dashboard reads."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable

from warmlane.router.sim.driver import Driver
from warmlane.router.sim.engine import Engine

_TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip


class Histogram:
    """A Prometheus histogram of seconds on the engine's clock."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_TTFT_BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_TTFT_BUCKETS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str, labels: str) -> Iterable[str]:
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*_TTFT_BUCKETS, float("inf")), self.counts, strict=True):
            total += count
            text = "+Inf" if bound == float("inf") else str(bound)
            yield f'{name}_bucket{{{labels},le="{text}"}} {float(total)}'
        yield f"{name}_count{{{labels}}} {float(total)}"
        yield f"{name}_sum{{{labels}}} {self.sum}"


class EngineMetrics:
    """Collects what happened to requests and renders the whole page."""

    def __init__(self, model: str, engine: Engine, driver: Driver, max_loras: int | None) -> None:
        self.model = model
        self.engine = engine
        self.driver = driver
        self.max_loras = max_loras
        self.sleep_level = 0
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.ttft = Histogram()
        self.queue_time = Histogram()
        self.e2e = Histogram()
        self._adapter_sets: dict[tuple[str, str], float] = {}
        self._labels = f'engine="0",model_name="{model}"'

    def request_finished(self, reason: str, arrived: float, first: float, now: float) -> None:
        """Times on the engine's clock; `first` below 0: no token came."""
        self.finished[reason] = self.finished.get(reason, 0) + 1
        self.e2e.observe(max(0.0, now - arrived))
        if first >= 0:
            self.ttft.observe(max(0.0, first - arrived))

    def note_adapters(self) -> None:
        """Remember the present set of adapters: every set stays on the page, the newest counts."""
        if self.max_loras is None:
            return
        running = dict.fromkeys(s.adapter for s in self.engine.running if s.adapter)
        waiting = dict.fromkeys(s.adapter for s in self.engine.waiting if s.adapter)
        self._adapter_sets[",".join(running), ",".join(waiting)] = time.time()

    def render(self) -> bytes:
        """Prometheus text."""
        self.note_adapters()
        counters, engine = self.engine.counters, self.engine
        waiting = len(engine.waiting)
        hits = counters.prefix_hits
        lines: list[str] = []
        self._gauge(lines, "num_requests_running", len(engine.running))
        self._gauge(lines, "num_requests_waiting", waiting)
        reasons = {"capacity": waiting - engine.deferred, "deferred": engine.deferred}
        self._family(lines, "num_requests_waiting_by_reason", "gauge", "reason", reasons)
        states = ("awake", "weights_offloaded", "discard_all")
        asleep = {state: int(index == self.sleep_level) for index, state in enumerate(states)}
        self._family(lines, "engine_sleep_state", "gauge", "sleep_state", asleep)
        self._gauge(lines, "kv_cache_usage_perc", engine.pool.usage)
        self._counter(lines, "prefix_cache_queries", counters.prefix_queries)
        self._counter(lines, "prefix_cache_hits", hits)
        self._counter(lines, "external_prefix_cache_queries", 0)
        self._counter(lines, "external_prefix_cache_hits", 0)
        self._counter(lines, "num_preemptions", counters.preemptions)
        self._counter(lines, "prompt_tokens", counters.prompt_tokens)
        sources = {"local_compute": counters.prompt_tokens - hits, "local_cache_hit": hits}
        self._family(lines, "prompt_tokens_by_source_total", "counter", "source", sources)
        self._counter(lines, "prompt_tokens_cached", hits)
        self._counter(lines, "generation_tokens", counters.generated_tokens)
        self._family(lines, "request_success_total", "counter", "finished_reason", self.finished)
        lines.extend(self.ttft.lines("vllm:time_to_first_token_seconds", self._labels))
        lines.extend(self.e2e.lines("vllm:e2e_request_latency_seconds", self._labels))
        self._adapters(lines)
        self._cache_config(lines)
        driver = self.driver
        lines.append(f"warmlane_fake:loop_lag_seconds_max {driver.lag_max_s}")
        lines.append(f"warmlane_fake:loop_lag_seconds_sum {driver.lag_sum_s}")
        lines.append(f"warmlane_fake:wakes_total {driver.wakes}")
        lines.append(f"warmlane_fake:engine_busy_seconds_total {counters.busy_s}")
        lines.append(f"warmlane_fake:engine_steps_total {counters.steps}")
        return ("\n".join(lines) + "\n").encode()

    def _gauge(self, lines: list[str], name: str, value: float) -> None:
        lines.append(f"# TYPE vllm:{name} gauge")
        lines.append(f"vllm:{name}{{{self._labels}}} {float(value)}")

    def _counter(self, lines: list[str], name: str, value: float) -> None:
        lines.append(f"# TYPE vllm:{name}_total counter")
        lines.append(f"vllm:{name}_total{{{self._labels}}} {float(value)}")

    def _family(
        self, lines: list[str], name: str, kind: str, label: str, values: dict[str, int]
    ) -> None:
        lines.append(f"# TYPE vllm:{name} {kind}")
        for key, value in values.items():
            lines.append(f'vllm:{name}{{{self._labels},{label}="{key}"}} {float(value)}')

    def _adapters(self, lines: list[str]) -> None:
        if self.max_loras is None:
            return
        lines.append("# TYPE vllm:lora_requests_info gauge")
        for (running, waiting), at in self._adapter_sets.items():
            lines.append(
                f'vllm:lora_requests_info{{max_lora="{self.max_loras}",'
                f'running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"}} {at!r}'
            )

    def _cache_config(self, lines: list[str]) -> None:
        config = self.engine.config
        lines.append("# TYPE vllm:cache_config_info gauge")
        lines.append(
            f'vllm:cache_config_info{{block_size="{config.block_size}",cache_dtype="auto",'
            f'enable_prefix_caching="True",engine="0",'
            f'kv_cache_size_tokens="{config.blocks * config.block_size}",'
            f'num_gpu_blocks="{config.blocks}",prefix_caching_hash_algo="sha256"}} 1.0'
        )
