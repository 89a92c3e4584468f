"""Each scorer on a small fleet: who is best, by how much, and when it has no opinion."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.router.fleet import chat, router_of
from warmlane.router.candidates import MIN_SCALE_TOKENS, CandidateColumns
from warmlane.router.core import Router
from warmlane.router.registry import scorer
from warmlane.router.types import LoadSnapshot, ModelList, Request
from warmlane.scorers import BUILTIN, DEFAULT_MIX


def stage(router: Router, *, prompt_tokens: float = 0.0, adapter: str = "") -> CandidateColumns:
    """Candidates of pool "default" with everybody eligible and the scale set."""
    decider = router.lanes["default"].decider
    candidates = decider.begin("", adapter, prompt_tokens, 0.0)
    size = len(candidates)
    candidates.mask = array("B", [1] * size)
    candidates.out = array("d", [9.0] * size)
    candidates.hit_tokens = candidates.no_hits
    candidates.scale()
    return candidates


def scores(
    name: str, candidates: CandidateColumns, request: Request | None = None, /, **fields: Any
) -> list[float] | None:
    found = scorer({"name": name, **fields}, "test").scorer.score(request or chat(), candidates)
    return None if found is None else list(found)


def loaded(*snapshots: LoadSnapshot) -> Router:
    router = router_of(len(snapshots))
    for slot, snapshot in enumerate(snapshots):
        router.pools["default"].update_load(slot, snapshot)
    return router


def test_the_table_of_the_readme_is_complete() -> None:
    for name, path in BUILTIN.items():
        module, _, attribute = path.partition(":")
        assert module == f"warmlane.scorers.{name}" and attribute[0].isupper()
    mix = [part if isinstance(part, str) else part["name"] for part in DEFAULT_MIX]
    assert set(mix) < set(BUILTIN)


def test_prefix_hit_counts_tokens_and_not_a_ratio() -> None:
    router = router_of(2)
    small = stage(router, prompt_tokens=200)
    small.hit_tokens = array("d", [180.0, 0.0])
    of_small = scores("prefix_hit", small)
    large = stage(router, prompt_tokens=40_000)
    large.hit_tokens = array("d", [20_000.0, 0.0])
    of_large = scores("prefix_hit", large)
    assert of_small is not None and of_large is not None
    assert of_small == [180 / MIN_SCALE_TOKENS, 0.0] and of_large == [0.5, 0.0]
    assert of_large[0] > of_small[0], "half of 40,000 is worth more than nine tenths of 200"


def test_inflight_tokens_and_prefix_hit_share_a_scale() -> None:
    """At equal weights their sum orders replicas by queue + own uncached tokens, exactly."""
    router = router_of(3)
    ledger = router.pools["default"].ledger
    for slot, tokens in enumerate((5000, 3000, 0)):
        ledger.open(slot, tokens, 0, 0.0)
    candidates = stage(router, prompt_tokens=4000)
    candidates.hit_tokens = array("d", [3900.0, 1500.0, 0.0])
    hit, queue = scores("prefix_hit", candidates), scores("inflight_tokens", candidates)
    assert hit is not None and queue is not None
    work = [(2 - a - b) * candidates.scale_tokens for a, b in zip(hit, queue, strict=True)]
    expected = [5000 + 100, 3000 + 2500, 0 + 4000]
    gaps = [one - work[0] for one in work]
    assert gaps == pytest.approx([one - expected[0] for one in expected])


def test_running_requests_weighs_requests_and_their_context() -> None:
    router = router_of(3)
    ledger = router.pools["default"].ledger
    ledger.open(0, 0, 100, 0.0)
    ledger.open(1, 0, 9000, 0.0)
    found = scores("running_requests", stage(router))
    assert found is not None and found[2] == 1.0 > found[0] > found[1]


def test_spread_is_bounded() -> None:
    router = router_of(3)
    pool = router.pools["default"]
    pool.placed(0, 10_000.0)
    pool.placed(1, 50_000_000.0)
    candidates = stage(router, prompt_tokens=50_000)
    found = scores("spread", candidates)
    assert found is not None
    assert found[2] == 1.0
    assert found[0] == pytest.approx(1 - 200 / candidates.scale_tokens)
    assert found[1] == pytest.approx(1 - 4096 / candidates.scale_tokens)


def test_least_requests() -> None:
    router = router_of(2)
    router.pools["default"].ledger.open(0, 0, 0, 0.0)
    found = scores("least_requests", stage(router))
    assert found is not None and found[1] > found[0]


def test_queue_depth_from_scrapes_and_from_the_ledger_when_stale() -> None:
    router = loaded(LoadSnapshot(taken_at=0.0, waiting=16), LoadSnapshot(taken_at=0.0))
    assert scores("queue_depth", stage(router)) == [0.75, 1.0]
    assert scores("queue_depth", stage(router), limit=8) == [0.0, 1.0]
    router.pools["default"].ledger.open(1, 10, 10, 0.0)
    decider = router.lanes["default"].decider
    decider.begin("", "", 0.0, 99.0)
    decider.candidates.out = array("d", [0.0, 0.0])
    assert scores("queue_depth", decider.candidates) == [1.0, 1 - 1 / 64]


def test_kv_usage() -> None:
    router = loaded(
        LoadSnapshot(taken_at=0.0, kv_usage=0.25), LoadSnapshot(taken_at=0.0, kv_usage=1.7)
    )
    assert scores("kv_usage", stage(router)) == [0.75, 0.0]


def test_lora_in_four_steps() -> None:
    router = loaded(
        LoadSnapshot(taken_at=0.0, running_adapters=frozenset({"a"}), max_lora=1),
        LoadSnapshot(taken_at=0.0, running_adapters=frozenset({"b"}), max_lora=1),
        LoadSnapshot(taken_at=0.0, running_adapters=frozenset({"b"}), max_lora=2),
        LoadSnapshot(taken_at=0.0, running_adapters=frozenset({"b"}), max_lora=1),
    )
    router.pools["default"].set_models(1, ModelList(adapters={"a": "m"}))
    assert scores("lora", stage(router, adapter="a")) == [1.0, 0.8, 0.6, 0.0]
    assert scores("lora", stage(router)) is None, "no adapter, no opinion"
    waits = LoadSnapshot(taken_at=0.0, waiting_adapters=frozenset({"a"}))
    router.pools["default"].update_load(3, waits)
    assert scores("lora", stage(router, adapter="a"), active=0.9) == [0.9, 0.8, 0.6, 0.9]
    full = LoadSnapshot(
        taken_at=0.0,
        running_adapters=frozenset({"b"}),
        waiting_adapters=frozenset({"c"}),
        max_lora=2,
    )
    router.pools["default"].update_load(2, full)
    assert scores("lora", stage(router, adapter="a"))[2] == 0.0, "a waiting adapter takes the slot"


def test_sessions_stay_and_only_those_of_a_leaver_move() -> None:
    router = router_of(6)

    def homes() -> dict[str, int]:
        found = {}
        for i in range(200):
            one = scores("session", stage(router), chat(session=f"s{i}"))
            assert one is not None and sum(one) == 1.0
            found[f"s{i}"] = one.index(1.0)
        return found

    before = homes()
    assert homes() == before and len(set(before.values())) == 6
    router.pools["default"].remove("r2", 0.0)
    router.pools["default"].reap(lambda slot: True)
    after = homes()
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {name for name, home in before.items() if home == 2}
    assert scores("session", stage(router)) is None


def test_zone() -> None:
    router = router_of(0)
    for i, zone in enumerate(("a", "b", "")):
        router.pools["default"].add(
            _spec(f"http://z{i}:1", zone),
            0.0,
        )
    assert scores("zone", stage(router)) is None
    assert scores("zone", stage(router), prefer="a") == [1.0, 0.0, 0.5]
    candidates = stage(router)
    candidates.zone = "b"
    assert scores("zone", candidates) == [0.0, 1.0, 0.5]


def _spec(url: str, zone: str) -> Any:
    from_config = router_of(1).pools["default"].by_name("r0")
    assert from_config is not None
    return type(from_config.spec)(url=url, zone=zone)


@given(st.data())
def test_all_stay_within_0_and_1_whatever_the_load(data: Any) -> None:
    """Any ledger, any scrape, any hits, a slot in the middle gone: every score is 0..1."""
    router = router_of(4)
    pool = router.pools["default"]
    amount = st.floats(0, 1e7)
    for slot in range(4):
        for _ in range(data.draw(st.integers(0, 3))):
            pool.ledger.open(slot, data.draw(amount), data.draw(amount), 0.0)
        snapshot = LoadSnapshot(
            taken_at=data.draw(st.sampled_from([0.0, -99.0])),
            waiting=data.draw(amount),
            running=data.draw(amount),
            kv_usage=data.draw(st.floats(-1, 2)),
        )
        pool.update_load(slot, snapshot)
        pool.placed(slot, data.draw(amount))
    pool.remove("r1", 0.0)
    prompt = data.draw(st.floats(0, 1e6))
    for name in BUILTIN:
        candidates = stage(router, prompt_tokens=prompt, adapter="a")
        candidates.hit_tokens = array("d", [data.draw(st.floats(0, prompt)) for _ in range(4)])
        candidates.mask[1] = 0
        found = scores(name, candidates, chat(session="s"))
        assert found is None or all(0.0 <= found[slot] <= 1.0 for slot in (0, 2, 3)), name
