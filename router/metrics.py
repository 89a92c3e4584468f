"""Every number the router counts about itself. Floor 4; exported by `metrics_export`.

Owns: the table of all families (`FAMILIES`: the only place where a name is declared), plain
counters, and fixed-bucket histograms. Must never: create a prometheus_client object on the hot
path, take a label value that grows with users or prompts, or hold prompt text.

Cost: one dict look-up and one or two list writes per call. The five calls of a request together
are to stay below 1 us of CPU (benchmarks measure it); all formatting happens at the scrape.

Not thread-safe: the owner thread of the Router calls it, as everything in the core.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

# Bounds in seconds. TTFT and duration follow the spread of engine answers (a cached prompt takes
# tens of milliseconds, a long agent turn minutes); a decision is to stay below 40 us (its bar),
# so its buckets start at 1 us.
TTFT_BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
DURATION_BOUNDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
DECISION_BOUNDS: Final = (
    1e-6, 2.5e-6, 5e-6, 1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 3.2e-4, 6.4e-4, 1e-3, 5e-3, 2e-2,
)  # fmt: skip

# Distinct label sets of one family. Pools, replicas and reasons are all bounded by the config;
# this is the last line, so that a bug cannot eat the memory.
MAX_SERIES: Final = 65_536


class Family(NamedTuple):
    """One exported metric family. `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


_R = ("pool", "replica")

FAMILIES: Final = (
    # Counters and histograms of the hot path
    Family("warmlane_requests_total", "counter", ("pool", "replica", "kind", "status"),
           "Requests answered, by the replica that answered (empty: none did)."),
    Family("warmlane_ttft_seconds", "histogram", ("pool",),
           "From the request's last byte to the first token sent to the client."),
    Family("warmlane_request_duration_seconds", "histogram", ("pool",),
           "From the request's last byte to the end of the answer."),
    Family("warmlane_decision_seconds", "histogram", ("pool",),
           "CPU-side time of one decision: match, filters, scores, pick, reservation."),
    Family("warmlane_prompt_tokens_total", "counter", _R,
           "Prompt tokens of routed requests; estimated where the answer carried no usage."),
    Family("warmlane_predicted_hit_tokens_total", "counter", _R,
           "Prompt tokens predicted to be in the replica's cache."),
    Family("warmlane_checked_prompt_tokens_total", "counter", _R,
           "Prompt tokens of those requests whose answer told the cached tokens."),
    Family("warmlane_checked_predicted_hit_tokens_total", "counter", _R,
           "Predicted hit tokens of those requests whose answer told the cached tokens."),
    Family("warmlane_actual_hit_tokens_total", "counter", _R,
           "Cached tokens as told by the answers' usage."),
    Family("warmlane_hit_error_tokens_total", "counter", ("pool", "replica", "sign"),
           "Absolute difference of predicted and actual hit tokens; sign is over or under."),
    Family("warmlane_token_requests_total", "counter", ("pool", "result"),
           "Requests whose token ids were wanted, by what became of them."),
    Family("warmlane_retries_total", "counter", ("pool", "reason"),
           "Requests moved to the next choice of their decision before the first byte."),
    Family("warmlane_ejections_total", "counter", ("pool", "replica", "reason"),
           "Times a replica was taken out by failures or probes."),
    Family("warmlane_rejected_total", "counter", ("reason",),
           "Requests that the router itself refused."),
    Family("warmlane_fallbacks_total", "counter", ("pool", "reason"),
           "Decisions where advice failed and least in-flight decided."),
    Family("warmlane_last_resort_total", "counter", ("pool", "when"),
           "Requests given to a replica that is not ready, for want of a ready one; when is"
           " decision or retry."),
    Family("warmlane_leaked_tickets_total", "counter", (),
           "Tickets that were closed by their age instead of by an event; a bug if it grows."),
    Family("warmlane_limits_reached_total", "counter", ("what",),
           "Times that a configured bound was reached."),
    Family("warmlane_client_gone_total", "counter", ("pool",),
           "Clients that left before the end of their answer."),
    Family("warmlane_streams_broken_total", "counter", _R,
           "Answers that broke after their first byte and ended with an error event."),
    # Feeds
    Family("warmlane_scrapes_total", "counter", _R, "Successful scrapes of a replica's metrics."),
    Family("warmlane_scrape_failures_total", "counter", _R,
           "Failed scrapes of a replica's metrics."),
    Family("warmlane_probe_failures_total", "counter", _R,
           "Failed health probes of a replica."),
    Family("warmlane_engine_restarts_total", "counter", _R,
           "Times a replica's own counters went backwards: its cache is empty again."),
    Family("warmlane_discovery_failures_total", "counter", ("pool", "source"),
           "Discovery rounds that failed and kept the old list; source is file, dns or srv."),
    Family("warmlane_reloads_total", "counter", ("result",),
           "Reloads of the config; result is ok or failed."),
    # Gauges read from the router at the scrape
    Family("warmlane_replicas", "gauge", ("pool", "state"), "Replicas of a pool by state."),
    Family("warmlane_replica_ready", "gauge", _R, "1 if the replica may receive new requests."),
    Family("warmlane_replica_inflight_requests", "gauge", _R, "Requests in flight through us."),
    Family("warmlane_replica_inflight_prefill_tokens", "gauge", _R,
           "Uncached prompt tokens in flight through us, reserved at the pick."),
    Family("warmlane_replica_backlog_seconds", "gauge", _R,
           "Predicted time to prefill what waits there; absent until its pace is known."),
    Family("warmlane_replica_working_set_ratio", "gauge", _R,
           "Uncached tokens placed there of late (half-life 300 s) over its KV cache."),
    Family("warmlane_replica_waiting_requests", "gauge", _R, "Engine's queue, by its metrics."),
    Family("warmlane_replica_running_requests", "gauge", _R, "Engine's batch, by its metrics."),
    Family("warmlane_replica_kv_usage_ratio", "gauge", _R,
           "Share of KV cache held by running requests, by the engine's metrics."),
    Family("warmlane_replica_scrape_age_seconds", "gauge", _R,
           "Age of the load snapshot; absent before the first one."),
    Family("warmlane_replica_asleep", "gauge", _R, "1 if the engine says that it sleeps."),
    Family("warmlane_engine_prefix_query_tokens_total", "counter", _R,
           "The engine's own counter of prompt tokens looked up in its cache."),
    Family("warmlane_engine_prefix_hit_tokens_total", "counter", _R,
           "The engine's own counter of prompt tokens found in its cache."),
    Family("warmlane_open_tickets", "gauge", ("pool",), "Decisions not yet closed."),
    Family("warmlane_index_blocks", "gauge", ("pool",), "Distinct blocks in the prefix index."),
    Family("warmlane_index_bytes", "gauge", ("pool",), "Memory of the prefix index."),
    Family("warmlane_connections", "gauge", ("side",),
           "Open connections of the proxy; side is client or upstream."),
    Family("warmlane_loop_lag_seconds", "gauge", (), "Latest lateness of the event loop's timer."),
    Family("warmlane_loop_lag_max_seconds", "gauge", (),
           "Greatest lateness of the event loop's timer since the previous scrape."),
    # The Envoy face and shadow decisions
    Family("warmlane_ext_proc_streams_total", "counter", ("end",),
           "External processing streams that ended; end is done, refused, reset or error."),
    Family("warmlane_ext_proc_open_streams", "gauge", (), "External processing streams now open."),
    Family("warmlane_ext_proc_buffered_bytes", "gauge", (), "Request bodies held by open streams."),
    Family("warmlane_ext_proc_protocol_errors_total", "counter", ("what",),
           "Streams refused because a gateway's message could not be read or came out of turn."),
    Family("warmlane_ext_proc_served_elsewhere_total", "counter", ("pool",),
           "Requests that the gateway sent to another replica than the first choice."),
    Family("warmlane_shadow_decisions_total", "counter", ("model", "agreed"),
           "Decisions compared with the other side's; agreed is yes, no or unknown."),
    Family("warmlane_shadow_prompt_tokens_total", "counter", ("model",),
           "Prompt tokens of compared decisions."),
    Family("warmlane_shadow_hit_tokens_total", "counter", ("model", "whose"),
           "Hit tokens that the view predicts on the replica that ours or theirs chose."),
    Family("warmlane_shadow_ttft_milliseconds_total", "counter", ("model", "whose"),
           "Predicted time to the first token on the replica that ours or theirs chose."),
    Family("warmlane_build_info", "gauge", ("version",), "1; carries the version."),
)  # fmt: skip

HISTOGRAMS: Final = {
    "warmlane_ttft_seconds": TTFT_BOUNDS,
    "warmlane_request_duration_seconds": DURATION_BOUNDS,
    "warmlane_decision_seconds": DECISION_BOUNDS,
}

# The families that one cell of `Metrics.hits` feeds, in order; the last two are over and under.
HIT_FAMILIES: Final = (
    "warmlane_prompt_tokens_total",
    "warmlane_predicted_hit_tokens_total",
    "warmlane_checked_prompt_tokens_total",
    "warmlane_checked_predicted_hit_tokens_total",
    "warmlane_actual_hit_tokens_total",
)
HIT_CELLS: Final = len(HIT_FAMILIES) + 2

Key = tuple[str, ...]


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
        "client_connections",
        "counts",
        "ext_proc_buffered_bytes",
        "ext_proc_streams",
        "histograms",
        "hits",
        "leaked",
        "loop_lag",
        "loop_lag_max",
        "renderer",
        "requests",
        "series_dropped",
        "upstream_connections",
        "version",
    )

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str, int], int] = {}
        self.hits: dict[tuple[str, str], list[int]] = {}
        self.counts: dict[str, dict[Key, int]] = {
            family.name: {} for family in FAMILIES if family.kind == "counter"
        }
        self.histograms: dict[str, dict[str, list[float]]] = {name: {} for name in HISTOGRAMS}
        self._ttft = self.histograms["warmlane_ttft_seconds"]
        self._duration = self.histograms["warmlane_request_duration_seconds"]
        self._decision = self.histograms["warmlane_decision_seconds"]
        self.leaked = 0
        self.series_dropped = 0
        self.client_connections = 0  # set by the proxy
        self.upstream_connections = 0
        self.version = "unknown"  # set by the command that serves
        self.ext_proc_streams = 0  # set by the Envoy face
        self.ext_proc_buffered_bytes = 0
        self.loop_lag = 0.0
        self.loop_lag_max = 0.0
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
        cell = self.hits.get((pool, replica))
        if cell is None:
            cell = [0] * HIT_CELLS
            if len(self.hits) < MAX_SERIES:
                self.hits[(pool, replica)] = cell
            else:
                self.series_dropped += 1
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

    def forget(self, pool: str, replica: str) -> None:
        """Drop all series of a removed replica, so that churn does not grow the exposition."""
        self.hits.pop((pool, replica), None)
        pair = (pool, replica)
        for key in [key for key in self.requests if key[:2] == pair]:
            del self.requests[key]
        for family in FAMILIES:
            if family.kind == "counter" and family.labels[:2] == _R:
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
