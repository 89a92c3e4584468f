"""The counters: what the hot path writes, and its bounds."""

from __future__ import annotations

import pytest

from warmlane.router import metrics as module
from warmlane.router.metrics import FAMILIES, HISTOGRAMS, HIT_FAMILIES, TTFT_BOUNDS, Metrics


def test_requests_are_counted_per_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 503):
        metrics.request_done("p", "a:1", "chat", status)
    assert metrics.requests == {("p", "a:1", "chat", 200): 2, ("p", "a:1", "chat", 503): 1}


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.001, 0), (0.0010001, 1), (60.0, len(TTFT_BOUNDS) - 1), (61.0, len(TTFT_BOUNDS))],
)
def test_a_bucket_includes_its_upper_bound(seconds: float, bucket: int) -> None:
    metrics = Metrics()
    metrics.ttft("p", seconds)
    cell = metrics.histograms["warmlane_ttft_seconds"]["p"]
    assert [index for index, n in enumerate(cell[:-1]) if n] == [bucket]
    assert cell[-1] == seconds


def test_histograms_keep_pools_apart_and_sum_seconds() -> None:
    metrics = Metrics()
    metrics.duration("a", 0.25)
    metrics.duration("a", 0.5)
    metrics.duration("b", 1.0)
    metrics.decision("a", 2e-6)
    cells = metrics.histograms["warmlane_request_duration_seconds"]
    assert cells["a"][-1] == 0.75
    assert sum(cells["a"][:-1]) == 2
    assert sum(cells["b"][:-1]) == 1
    assert sum(metrics.histograms["warmlane_decision_seconds"]["a"][:-1]) == 1


def test_hit_counts_error_only_where_the_answer_told() -> None:
    metrics = Metrics()
    metrics.hit("p", "r", 64, None, 100)
    metrics.hit("p", "r", 64, 32, 100)
    metrics.hit("p", "r", 0, 16, 50)
    assert metrics.hits[("p", "r")] == [250, 128, 150, 64, 48, 32, 16]


def test_rare_events_land_in_their_family() -> None:
    metrics = Metrics()
    metrics.retry("p", "connect")
    metrics.retry("p", "connect")
    metrics.ejection("p", "r", "failures")
    metrics.rejected("api_key")
    metrics.leaked_tickets(3)
    counts = metrics.snapshot()["counts"]
    assert counts["warmlane_retries_total"] == {("p", "connect"): 2}
    assert counts["warmlane_ejections_total"] == {("p", "r", "failures"): 1}
    assert counts["warmlane_rejected_total"] == {("api_key",): 1}
    assert metrics.leaked == 3


def test_an_undeclared_counter_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Metrics().count("warmlane_no_such_total", "x")


def test_series_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 3)
    metrics = Metrics()
    for index in range(5):
        metrics.request_done("p", f"r{index}", "chat", 200)
        metrics.hit("p", f"r{index}", 1, 1, 1)
        metrics.rejected(f"reason{index}")
        metrics.ttft(f"pool{index}", 0.1)
    assert len(metrics.requests) == len(metrics.hits) == 3
    assert len(metrics.counts["warmlane_rejected_total"]) == 3
    assert len(metrics.histograms["warmlane_ttft_seconds"]) == 3
    assert metrics.series_dropped == 8
    metrics.rejected("reason0")  # a known series still counts
    assert metrics.counts["warmlane_rejected_total"][("reason0",)] == 2


def test_forget_drops_all_of_a_replica_and_nothing_else() -> None:
    metrics = Metrics()
    for name in ("gone", "stays"):
        metrics.request_done("p", name, "chat", 200)
        metrics.hit("p", name, 1, 1, 1)
        metrics.ejection("p", name, "probe")
        metrics.scrape_failed("p", name)
    metrics.forget("p", "gone")
    assert "gone" not in repr(metrics.snapshot())
    assert repr(metrics.snapshot()).count("stays") == 4


def test_the_table_of_families_is_sound() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    assert all(name.startswith("warmlane_") for name in names)
    assert all(f.name.endswith("_total") == (f.kind == "counter") for f in FAMILIES)
    assert {f.name for f in FAMILIES if f.kind == "histogram"} == set(HISTOGRAMS)
    assert set(HIT_FAMILIES) <= set(names)
    assert not any({"user", "prompt", "session"} & set(f.labels) for f in FAMILIES)
    # Models that a config or a replica lists, and at most a thousand: see shadow.Shadow.
    with_model = {family.name for family in FAMILIES if "model" in family.labels}
    assert all(name.startswith("warmlane_shadow_") for name in with_model)
