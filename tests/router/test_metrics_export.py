"""The exposition: equal to the client library's own, complete, and safe against odd labels."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from warmlane._core.price import Price
from warmlane.router.config import Config, PoolConfig
from warmlane.router.core import Router
from warmlane.router.metrics import FAMILIES, Metrics
from warmlane.router.metrics_export import RouterCollector, attach
from warmlane.router.pool import Pool
from warmlane.router.types import (
    Doubt,
    Kind,
    LoadSnapshot,
    ModelList,
    Outcome,
    ReplicaSpec,
    ReplicaState,
    Request,
)
from warmlane.router.zones import ZonePairs

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def pool() -> Pool:
    pool = Pool(PoolConfig(name="chat", capacity_tokens=2000))
    pool.add(ReplicaSpec(url="http://10.0.0.1:8000"), 0.0)
    pool.add(ReplicaSpec(url="http://10.0.0.2:8000", name='we"ird\\na\nme'), 0.0)
    pool.set_state(1, ReplicaState.EJECTED)
    pool.update_load(
        0,
        LoadSnapshot(
            taken_at=90.0, waiting=3, running=4, kv_usage=0.25, prefix_queries=100, prefix_hits=40
        ),
    )
    pool.ledger.open(0, 500, 700, 0.0)
    pool.placed(0, 500)
    pool.pace.tokens_per_s[0] = 1000
    doubted = pool.replicas[0]
    assert doubted is not None
    doubted.exact = True
    pool.price = Price()
    for _ in range(50):
        pool.price.heard(0, 1000, 0.5)
        pool.price.streamed(0, 101, 2.0, (1, 0, 0))
    pool.set_models(0, ModelList(adapters={"sql": "m"}))
    doubted.doubt = Doubt(
        kind="missed", cause="tokenizer", predicted_tokens=0, actual_tokens=9000, advice="look"
    )
    return pool


@pytest.fixture
def metrics() -> Metrics:
    """One with something in every family."""
    metrics = Metrics()
    metrics.request_done("chat", "10.0.0.1:8000", "chat", 200)
    metrics.request_done("", "", "other", 404)
    for seconds in (0.0004, 0.03, 99.0):
        metrics.ttft("chat", seconds)
        metrics.duration("chat", seconds)
        metrics.decision("chat", seconds)
        metrics.admission_wait("chat", seconds)
    metrics.hit("chat", "10.0.0.1:8000", 64, 48, 100)
    for family in FAMILIES:
        if family.kind == "counter":
            metrics.counts[family.name].setdefault(tuple(family.labels), 7)
    metrics.gauge("warmlane_kube_synced", 1, "chat", "pods")
    metrics.gauge("warmlane_leader", 0)
    metrics.gauge("warmlane_share_connected", 1)
    metrics.gauge("warmlane_share_peers", 2)
    for name in ("admission_active", "admission_waiting", "admission_waiting_bytes"):
        metrics.gauge(f"warmlane_{name}", 1, "chat")
    metrics.gauge("warmlane_working_set_ratio", 0.5, "chat")
    metrics.transport = "native"
    metrics.transport_stats = lambda: {
        "streams_total": 9,
        "bytes_in_total": 800,
        "bytes_out_total": 90,
        "open_connections": 2,
        "open_streams": 3,
        "held_bytes": 64,
        "peak_held_bytes": 640,
    }
    metrics.leaked_tickets(2)
    metrics.client_connections = 5
    metrics.lag(0.5)
    metrics.lag(0.125)
    return metrics


def collector(metrics: Metrics, pool: Pool) -> RouterCollector:
    pools = {"chat": pool}
    metrics.zones = ZonePairs(metrics.requests, metrics.hits, pools, "a")
    return attach(metrics, pools, lambda name: (12, 3456), lambda: 100.0)


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


def test_our_text_says_what_the_client_library_would(metrics: Metrics, pool: Pool) -> None:
    registry = CollectorRegistry()
    ours = collector(metrics, pool)
    registry.register(ours)
    text = "".join(ours.text())
    metrics.lag(0.5)  # a scrape takes the greatest lag with it
    metrics.lag(0.125)
    assert parsed(text) == parsed(generate_latest(registry).decode())


def test_the_text_is_complete_and_each_family_declared_once(metrics: Metrics, pool: Pool) -> None:
    text = "".join(collector(metrics, pool).text())
    for family in FAMILIES:
        assert text.count(f"# TYPE {family.name} {family.kind}\n") == 1
        lines = [line for line in text.splitlines() if line.startswith(family.name)]
        assert lines, f"{family.name} has no series although everything happened"
    assert all(line.startswith(("# ", "warmlane_")) for line in text.splitlines())


def test_values(metrics: Metrics, pool: Pool) -> None:
    collector(metrics, pool)
    series = parsed(metrics.render().decode())
    one = {"pool": "chat", "replica": "10.0.0.1:8000"}
    assert value(series, "warmlane_requests_total", **one, kind="chat", status="200") == 1
    assert value(series, "warmlane_ttft_seconds_bucket", pool="chat", le="0.001") == 1
    assert value(series, "warmlane_ttft_seconds_bucket", pool="chat", le="0.05") == 2
    assert value(series, "warmlane_ttft_seconds_bucket", pool="chat", le="+Inf") == 3
    assert value(series, "warmlane_ttft_seconds_count", pool="chat") == 3
    assert value(series, "warmlane_ttft_seconds_sum", pool="chat") == pytest.approx(99.0304)
    assert value(series, "warmlane_actual_hit_tokens_total", **one) == 48
    assert value(series, "warmlane_hit_error_tokens_total", **one, sign="over") == 16
    assert value(series, "warmlane_hit_error_tokens_total", **one, sign="under") == 0
    sent = value(
        series, "warmlane_ext_proc_transport_bytes_total", transport="native", direction="out"
    )
    assert sent == 90
    assert value(series, "warmlane_checked_ttft_requests_total", **one) == 20
    assert value(series, "warmlane_checked_ttft_seconds_total", **one) == pytest.approx(10)
    predicted = value(series, "warmlane_checked_predicted_ttft_seconds_total", **one)
    missed = value(series, "warmlane_ttft_error_seconds_total", **one)
    assert predicted == pytest.approx(10, rel=0.1) and missed >= abs(predicted - 10)
    learned = {
        each: value(series, f"warmlane_replica_{each}", **one)
        for each in ("prefill_factor", "decode_factor", "decode_token_seconds")
    }
    assert learned["prefill_factor"] == learned["decode_factor"] == 1
    assert learned["decode_token_seconds"] == pytest.approx(0.02, rel=0.05)
    assert value(series, "warmlane_replica_prefill_token_seconds", **one) < 1e-3
    assert not any(
        name.startswith("warmlane_replica_decode") and ("replica", "10.0.0.1:8000") not in labels
        for name, labels in series
    ), "little was heard of the other"
    assert value(series, "warmlane_replicas", pool="chat", state="ready") == 1
    assert value(series, "warmlane_replicas", pool="chat", state="ejected") == 1
    assert value(series, "warmlane_replica_inflight_requests", **one) == 1
    assert value(series, "warmlane_replica_inflight_prefill_tokens", **one) == 500
    # 500 tokens of its own, and three waiting ones of others at the mean of a request
    waiting = 500 + 3 * pool.mean_uncached_tokens
    backlog = value(series, "warmlane_replica_backlog_seconds", **one)
    assert backlog == pytest.approx(waiting / 1000, rel=0.01)
    assert value(series, "warmlane_replica_working_set_ratio", **one) == 0.25
    assert value(series, "warmlane_replica_scrape_age_seconds", **one) == 10
    assert value(series, "warmlane_replica_kv_usage_ratio", **one) == 0.25
    assert value(series, "warmlane_engine_prefix_hit_tokens_total", **one) == 40
    assert value(series, "warmlane_open_tickets", pool="chat") == 1
    assert value(series, "warmlane_index_bytes", pool="chat") == 3456
    assert value(series, "warmlane_loop_lag_max_seconds") == 0.5
    assert value(series, "warmlane_leaked_tickets_total") == 2
    assert "process_cpu_seconds_total" in {name for name, _ in series}


def test_a_replica_never_scraped_has_no_age(metrics: Metrics, pool: Pool) -> None:
    ours = collector(metrics, pool)
    aged = {labels[1] for labels, _ in ours.samples("warmlane_replica_scrape_age_seconds")}
    ready = {labels[1] for labels, _ in ours.samples("warmlane_replica_ready")}
    assert aged == {"10.0.0.1:8000"}
    assert len(ready) == 2


def test_the_greatest_lag_starts_anew_after_a_scrape(metrics: Metrics, pool: Pool) -> None:
    collector(metrics, pool)
    metrics.render()
    series = parsed(metrics.render().decode())
    assert value(series, "warmlane_loop_lag_max_seconds") == 0.125


def test_dropped_series_are_told(metrics: Metrics, pool: Pool) -> None:
    metrics.series_dropped = 9
    series = parsed("".join(collector(metrics, pool).text()))
    assert value(series, "warmlane_limits_reached_total", what="series") == 9


def test_without_attach_rendering_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Metrics().render()


@pytest.mark.parametrize(("stream", "policy", "told"), [
    (True, "default", 20), (False, "default", 0), (True, "round-robin", 0),
])  # fmt: skip
def test_first_tokens_are_held_against_what_was_predicted(
    stream: bool, policy: str, told: int
) -> None:
    """Streamed ones only: of the others nobody sees when the first token came."""
    specs = [ReplicaSpec(url="http://10.0.0.1:8000")]
    router = Router(Config(pools=[PoolConfig(name="chat", replicas=specs, policy=policy)]))
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"x" * 4000, stream=stream)
    for number in range(50):
        decision = router.decide(request, float(number), 0)
        router.sent(decision.ticket, 0, float(number))
        router.first_token(decision.ticket, number + 0.25)
        router.close(decision.ticket, Outcome(), number + 0.5)
    text = "".join(attach(router.metrics, router.pools, lambda _: (0, 0), lambda: 60.0).text())
    one = {"pool": "chat", "replica": "10.0.0.1:8000"}
    series = parsed(text)
    assert series.get(("warmlane_checked_ttft_requests_total", frozenset(one.items())), 0) == told
    if told:
        assert value(series, "warmlane_checked_ttft_seconds_total", **one) == told * 0.25
