"""Every number the router counts about itself. Floor 4; exported by `metrics_export`.

Owns: plain counters and fixed-bucket histograms; their names are in `metrics_table`. Must never:
create a prometheus_client object on the hot path, take a label value that grows with users or
prompts, or hold prompt text.

Cost: one dict look-up and one or two list writes per call. The five calls of a request together
are to stay below 1 us of CPU (benchmarks measure it); all formatting happens at the scrape.

Not thread-safe: the owner thread of the Router calls it, as everything in the core.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from warmlane._core.desk import set_bounds
from warmlane.router.metrics_table import (
    DECISION_BOUNDS,
    DURATION_BOUNDS,
    FAMILIES,
    HISTOGRAMS,
    HIT_CELLS,
    HIT_FAMILIES,
    PER_REPLICA,
    TTFT_BOUNDS,
    WAIT_BOUNDS,
    Family,
)
from warmlane.router.types import Kind
from warmlane.router.zones import ZonePairs

__all__ = [
    "FAMILIES",
    "HISTOGRAMS",
    "HIT_FAMILIES",
    "MAX_SERIES",
    "TTFT_BOUNDS",
    "Family",
    "Metrics",
]

# Distinct label sets of one family. Pools, replicas and reasons are all bounded by the config;
# this is the last line, so that a bug cannot eat the memory.
MAX_SERIES: Final = 65_536


Key = tuple[str, ...]
KINDS: Final = tuple(kind.value for kind in Kind)  # in the order of `_core.scan`

set_bounds(TTFT_BOUNDS, DURATION_BOUNDS, DECISION_BOUNDS, KINDS)


class Metrics:
    """Counters of one Router. Methods are total: any value of the right type is accepted.

    `counts[family][label values]` are plain ints. `histograms[family][pool]` is a list: one count
    per bucket (not cumulative), the overflow bucket, and the sum of seconds as last element.
    `hits[(pool, replica)]` are `HIT_CELLS` ints. `requests` is keyed by (pool, replica, kind,
    status).
    """

    __slots__ = (
        "_decision",
        "_duration",
        "_ttft",
        "_wait",
        "client_connections",
        "counts",
        "ext_proc_buffered_bytes",
        "ext_proc_streams",
        "gauges",
        "histograms",
        "hits",
        "leaked",
        "loop_lag",
        "loop_lag_max",
        "renderer",
        "requests",
        "series_dropped",
        "transport",
        "transport_stats",
        "upstream_connections",
        "version",
        "zones",
    )

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str, int], int] = {}
        self.hits: dict[tuple[str, str], list[int]] = {}
        self.counts: dict[str, dict[Key, int]] = {
            family.name: {} for family in FAMILIES if family.kind == "counter"
        }
        self.histograms: dict[str, dict[str, list[float]]] = {name: {} for name in HISTOGRAMS}
        self.gauges: dict[str, dict[Key, float]] = {}
        self._ttft = self.histograms["warmlane_ttft_seconds"]
        self._duration = self.histograms["warmlane_request_duration_seconds"]
        self._decision = self.histograms["warmlane_decision_seconds"]
        self._wait = self.histograms["warmlane_admission_wait_seconds"]
        self.leaked = 0
        self.series_dropped = 0
        self.client_connections = 0  # set by the proxy
        self.upstream_connections = 0
        self.version = "unknown"  # set by the command that serves
        self.ext_proc_streams = 0  # set by the Envoy face
        self.ext_proc_buffered_bytes = 0
        self.transport = ""  # of its main port, with what it counts
        self.transport_stats: Callable[[], Mapping[str, float]] = dict
        self.loop_lag = 0.0
        self.loop_lag_max = 0.0
        self.zones: ZonePairs | None = None  # set by the Router
        self.renderer: Callable[[], Iterable[bytes]] | None = None  # see metrics_export.attach

    # Hot path ---------------------------------------------------------------------------------

    def request_done(self, pool: str, replica: str, kind: str, status: int) -> None:
        """One request was answered with an HTTP status (0: the client left before any answer)."""
        key = (pool, replica, kind, status)
        try:
            self.requests[key] += 1
        except KeyError:
            if len(self.requests) < MAX_SERIES:
                self.requests[key] = 1
            else:
                self.series_dropped += 1

    def ttft(self, pool: str, seconds: float) -> None:
        """Time to the first token. A value exactly on a bound counts into that bucket."""
        cell = self._ttft.get(pool) or self._open(self._ttft, pool, TTFT_BOUNDS)
        cell[bisect_left(TTFT_BOUNDS, seconds)] += 1
        cell[-1] += seconds

    def duration(self, pool: str, seconds: float) -> None:
        cell = self._duration.get(pool) or self._open(self._duration, pool, DURATION_BOUNDS)
        cell[bisect_left(DURATION_BOUNDS, seconds)] += 1
        cell[-1] += seconds

    def admission_wait(self, pool: str, seconds: float) -> None:
        """How long a request waited in the router, whatever then became of it."""
        cell = self._wait.get(pool) or self._open(self._wait, pool, WAIT_BOUNDS)
        cell[bisect_left(WAIT_BOUNDS, seconds)] += 1
        cell[-1] += seconds

    def decision(self, pool: str, seconds: float) -> None:
        cell = self._decision.get(pool) or self._open(self._decision, pool, DECISION_BOUNDS)
        cell[bisect_left(DECISION_BOUNDS, seconds)] += 1
        cell[-1] += seconds

    def hit(
        self,
        pool: str,
        replica: str,
        predicted_tokens: int,
        actual_tokens: int | None,
        prompt_tokens: int,
    ) -> None:
        """Predicted against actual hit tokens of one finished request (actual None: not told)."""
        cell = self.hits.get((pool, replica)) or self.hit_cell(pool, replica)
        cell[0] += prompt_tokens
        cell[1] += predicted_tokens
        if actual_tokens is not None:
            cell[2] += prompt_tokens
            cell[3] += predicted_tokens
            cell[4] += actual_tokens
            if predicted_tokens > actual_tokens:
                cell[5] += predicted_tokens - actual_tokens
            else:
                cell[6] += actual_tokens - predicted_tokens

    # For the compiled path, which keeps the cells

    def cells(self, pool: str) -> tuple[list[float], list[float], list[float]]:
        """The cells of a pool's histograms: time to first token, duration, decision."""
        return (
            self._ttft.get(pool) or self._open(self._ttft, pool, TTFT_BOUNDS),
            self._duration.get(pool) or self._open(self._duration, pool, DURATION_BOUNDS),
            self._decision.get(pool) or self._open(self._decision, pool, DECISION_BOUNDS),
        )

    def hit_cell(self, pool: str, replica: str) -> list[int]:
        """The cell that `hit` adds to."""
        cell = self.hits.get((pool, replica))
        if cell is None:
            cell = [0] * HIT_CELLS
            if len(self.hits) < MAX_SERIES:
                self.hits[(pool, replica)] = cell
            else:
                self.series_dropped += 1
        return cell

    # Rare events ------------------------------------------------------------------------------

    def retry(self, pool: str, reason: str) -> None:
        self.count("warmlane_retries_total", pool, reason)

    def ejection(self, pool: str, replica: str, reason: str) -> None:
        self.count("warmlane_ejections_total", pool, replica, reason)

    def rejected(self, reason: str) -> None:
        self.count("warmlane_rejected_total", reason)

    def tokens(self, pool: str, result: str) -> None:
        """What became of the token ids of one request (docs/exact.md names the results)."""
        self.count("warmlane_token_requests_total", pool, result)

    def fallback(self, pool: str, reason: str) -> None:
        self.count("warmlane_fallbacks_total", pool, reason)

    def last_resort(self, pool: str, when: str) -> None:
        self.count("warmlane_last_resort_total", pool, when)

    def leaked_tickets(self, n: int) -> None:
        self.leaked += n

    def limit_reached(self, what: str) -> None:
        self.count("warmlane_limits_reached_total", what)

    def client_gone(self, pool: str) -> None:
        self.count("warmlane_client_gone_total", pool)

    def stream_broken(self, pool: str, replica: str) -> None:
        self.count("warmlane_streams_broken_total", pool, replica)

    def scrape_done(self, pool: str, replica: str) -> None:
        self.count("warmlane_scrapes_total", pool, replica)

    def scrape_failed(self, pool: str, replica: str) -> None:
        self.count("warmlane_scrape_failures_total", pool, replica)

    def probe_failed(self, pool: str, replica: str) -> None:
        self.count("warmlane_probe_failures_total", pool, replica)

    def engine_restarted(self, pool: str, replica: str) -> None:
        self.count("warmlane_engine_restarts_total", pool, replica)

    def discovery_failed(self, pool: str, source: str) -> None:
        self.count("warmlane_discovery_failures_total", pool, source)

    def reloaded(self, result: str) -> None:
        self.count("warmlane_reloads_total", result)

    def lag(self, seconds: float) -> None:
        """Lateness of the event loop's timer, told by the maintenance tick."""
        self.loop_lag = seconds
        if seconds > self.loop_lag_max:
            self.loop_lag_max = seconds

    # Plumbing ---------------------------------------------------------------------------------

    def count(self, family: str, *labels: str, n: int = 1) -> None:
        """Add to a counter of `FAMILIES`; KeyError for an undeclared name (a bug)."""
        cells = self.counts[family]
        have = cells.get(labels)
        if have is None and len(cells) >= MAX_SERIES:
            self.series_dropped += 1
            return
        cells[labels] = (have or 0) + n

    def gauge(self, family: str, value: float, *labels: str) -> None:
        """Set a gauge of `FAMILIES` that a feed tells; its labels are bounded by the config."""
        self.gauges.setdefault(family, {})[labels] = value

    def forget(self, pool: str, replica: str, zone: str = "") -> None:
        """Drop all series of a removed replica, so that churn does not grow the exposition.

        zone: where it was; its zone keeps what it counted.
        """
        if self.zones is not None:
            self.zones.leaves(pool, replica, zone)
        self.hits.pop((pool, replica), None)
        pair = (pool, replica)
        for key in [key for key in self.requests if key[:2] == pair]:
            del self.requests[key]
        for family in FAMILIES:
            if family.kind == "counter" and family.labels[:2] == PER_REPLICA:
                cells = self.counts[family.name]
                for name in [name for name in cells if name[:2] == pair]:
                    del cells[name]

    def parts(self) -> Iterable[bytes]:
        """Prometheus text exposition, family by family; needs `metrics_export.attach`."""
        assert self.renderer is not None, "metrics_export.attach comes first"
        return self.renderer()

    def render(self) -> bytes:
        """The whole exposition at once."""
        return b"".join(self.parts())

    def _open(
        self, cells: dict[str, list[float]], pool: str, bounds: tuple[float, ...]
    ) -> list[float]:
        # A list with elements is true, so `get(pool) or _open(...)` opens each cell once.
        cell: list[float] = [0] * (len(bounds) + 1)
        cell.append(0.0)
        if len(cells) < MAX_SERIES:
            cells[pool] = cell
        else:
            self.series_dropped += 1
        return cell

    def snapshot(self) -> dict[str, Any]:
        """All counters as plain data, for tests and the embedded demo."""
        return {
            "requests": dict(self.requests),
            "hits": {key: list(cell) for key, cell in self.hits.items()},
            "counts": {name: dict(cells) for name, cells in self.counts.items() if cells},
            "leaked": self.leaked,
        }
