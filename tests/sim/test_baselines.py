"""The rebuilt policies of others: each follows its rule, and none ever falls back."""

from __future__ import annotations

from array import array

import msgspec
import pytest

from warmlane.router.config import PoolConfig
from warmlane.router.registry import POLICIES, build_parts
from warmlane.router.sim import baselines as b
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions
from warmlane.router.sim.workload import generate
from warmlane.router.types import Kind, LoadSnapshot, ReplicaSpec, Request


class Seat(msgspec.Struct):
    """As much of a replica as a scorer looks at."""

    name: str
    spec: ReplicaSpec = ReplicaSpec(url="http://a:1")
    load: LoadSnapshot | None = None


class Columns:
    """Candidates with given columns; those of the ledger are longer than the pool, as in life."""

    def __init__(self, size: int = 3, prompt: float = 1000.0) -> None:
        self.mask = array("B", [1] * size)
        self.prompt_tokens = prompt
        self.hit_tokens = array("d", [0.0] * size)
        self.requests = array("i", [0] * (size + 5))
        self.prefill_tokens = array("d", [0.0] * (size + 5))
        self.decode_tokens = array("d", [0.0] * (size + 5))
        self.placed_tokens = array("d", [0.0] * size)
        self.kv_usage = array("d", [0.0] * size)
        self.waiting = array("d", [0.0] * size)
        self.replicas = [Seat(f"replica-{slot}") for slot in range(size)]
        self.out = array("d", [7.0] * size)

    def __len__(self) -> int:
        return len(self.mask)


ASK = Request(kind=Kind.COMPLETIONS, prompt=b"x" * 5000)
SCORERS = [
    part
    for part in vars(b).values()
    if isinstance(part, type) and part.__module__ == b.__name__ and hasattr(part, "score")
]


def best(part: object, columns: Columns) -> list[int]:
    """The slots that share the greatest score."""
    scores = part.score(ASK, columns)  # type: ignore[attr-defined]
    top = max(scores[slot] for slot in range(len(columns)) if columns.mask[slot])
    return [slot for slot in range(len(columns)) if columns.mask[slot] and scores[slot] == top]


@pytest.mark.parametrize("part", SCORERS)
def test_scores_are_finite_and_within_bounds(part: type) -> None:
    columns = Columns()
    assert part().score(ASK, columns) is not None
    columns.hit_tokens = array("d", [0.0, 999.0, 5000.0])  # one beyond the prompt, too
    columns.requests = array("i", [0, 100, 3, 0, 0])
    columns.prefill_tokens = array("d", [0.0, 1e9, 3.0, 0.0])
    columns.decode_tokens = array("d", [1e9, 0.0, 3.0, 0.0])
    columns.kv_usage = array("d", [0.0, 1.0, 1.5])
    for mask in ([1, 1, 1], [0, 1, 1], [0, 0, 1]):
        columns.mask = array("B", mask)
        scores = part().score(ASK, columns)
        assert len(scores) == 3
        assert all(0.0 <= scores[slot] <= 1.0 for slot in range(3) if mask[slot])


def test_weighted_sum() -> None:
    columns = Columns()
    for seat, waiting in zip(columns.replicas, (4.0, 0.0, 2.0), strict=True):
        seat.load = LoadSnapshot(taken_at=0.0, waiting=waiting)
    columns.hit_tokens = array("d", [1000.0, 0.0, 0.0])
    assert best(b.LlmdWeighted(), columns) == [0]  # 3 + 0 + 2 against 0 + 2 + 2
    assert best(b.LlmdWeighted(prefix=1.0), columns) == [1]


def test_affinity_holds_until_saturated() -> None:
    columns = Columns()
    columns.hit_tokens = array("d", [900.0, 790.0, 0.0])
    columns.prefill_tokens = array("d", [5000.0, 0.0, 100.0])
    assert best(b.LlmdAffinity(), columns) == [0]
    assert best(b.LlmdAffinity(tau_tokens=4999.0), columns) == [1]


def test_dynamo_adds_prefill_and_decode_blocks() -> None:
    columns = Columns()
    columns.hit_tokens = array("d", [600.0, 0.0, 0.0])
    columns.decode_tokens = array("d", [500.0, 0.0, 5000.0])
    assert best(b.Dynamo(), columns) == [0]
    columns.decode_tokens[0] = 700.0
    assert best(b.Dynamo(), columns) == [1]
    assert best(b.Dynamo(overlap_weight=2.0), columns) == [0]


def test_dynamo_counts_blocks_in_use_once() -> None:
    """The choices of the released service in a whole run: benchmarks/bench_select.py."""
    columns, rule = Columns(prompt=160.0), b.Dynamo()
    rule.stride = 1
    shared, own = list(range(6)), [10, 11, 12, 13]
    for _ in range(3):
        rule.began(0, shared)
    rule.began(1, [50, 51, 52])
    rule.asks(shared + own)
    # 6 blocks there and 4 new ones: 10, as where nothing runs; beside others in use: 13.
    assert best(rule, columns) == [0, 2]
    columns.hit_tokens = array("d", [0.0, 96.0, 0.0])
    assert best(rule, columns) == [1]  # 4 + 13 against 10 + 10
    rule.ended(0, shared)
    assert best(rule, columns) == [1]
    for _ in range(2):
        rule.ended(0, shared)
    rule.began(2, [99] * 1)
    columns.hit_tokens = array("d", [0.0, 0.0, 0.0])
    assert best(rule, columns) == [0]
    with pytest.raises(ValueError, match="overlap_weight"):
        b.Dynamo(overlap_weight=-1.0)


def test_the_lab_tells_dynamo_which_blocks_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    rules: list[b.Dynamo] = []
    ended: list[int] = []

    class Seen(b.Dynamo):
        def __init__(self) -> None:
            super().__init__()
            rules.append(self)

        def ended(self, slot: int, keys: object) -> None:
            super().ended(slot, keys)  # type: ignore[arg-type]
            ended.append(slot)

    monkeypatch.setattr(b, "Dynamo", Seen)
    made = generate("chat", 20, seed=3)
    run = Lab(made, PoolConfig(policy="dynamo"), LabOptions(rate=4.0)).run()
    assert run.fallbacks == 0 and len(ended) == len(run.done)
    assert not any(rules[-1]._active.values()), "blocks of ended requests are in use no more"


def test_lmetric_multiplies() -> None:
    columns = Columns()
    columns.hit_tokens = array("d", [900.0, 0.0, 0.0])
    columns.requests = array("i", [8, 0, 0])
    columns.prefill_tokens = array("d", [500.0, 0.0, 1.0])
    assert best(b.LMetric(), columns) == [0]  # 101 x 9 < 1001 x 1
    assert best(b.LMetric(queued=True), columns) == [1]


def test_sglang_switches_to_the_shortest_queue() -> None:
    columns = Columns()
    columns.placed_tokens = array("d", [5.0, 9.0, 3.0])
    assert best(b.Sglang(), columns) == [2]  # the smallest tree
    columns.hit_tokens = array("d", [0.0, 400.0, 100.0])
    columns.requests = array("i", [0, 64, 30])
    assert best(b.Sglang(), columns) == [1]
    columns.requests = array("i", [0, 65, 30])
    assert best(b.Sglang(), columns) == [0]


def test_aibrix_skips_what_stands_out() -> None:
    columns = Columns()
    columns.hit_tokens = array("d", [900.0, 300.0, 0.0])
    columns.requests = array("i", [4, 4, 4])
    assert best(b.Aibrix(), columns) == [0]
    columns.requests = array("i", [8, 1, 0])
    assert best(b.Aibrix(), columns) == [1]  # 8 is above mean + sigma = 6.6
    columns.requests = array("i", [9, 1, 0])
    assert best(b.Aibrix(), columns) == [2]  # imbalance


def test_least_ttft_weighs_the_queue() -> None:
    columns = Columns()
    columns.hit_tokens = array("d", [900.0, 0.0, 0.0])
    columns.prefill_tokens = array("d", [800.0, 10.0, 0.0])
    assert best(b.LeastTtft(), columns) == [0]
    columns.prefill_tokens[0] = 1000.0
    assert best(b.LeastTtft(), columns) == [2]


def test_preble_exploits_and_explores() -> None:
    columns = Columns()
    columns.hit_tokens = array("d", [600.0, 600.0, 0.0])
    columns.prefill_tokens = array("d", [9000.0, 8000.0, 0.0])
    assert best(b.Preble(), columns) == [1]
    columns.hit_tokens = array("d", [400.0, 400.0, 0.0])
    assert best(b.Preble(), columns) == [2]


def test_bounded_hash_moves_on_when_full() -> None:
    columns = Columns()
    (home,) = best(b.BoundedHash(), columns)
    columns.requests[home] = 1
    columns.mask[home] = 0
    (second,) = best(b.BoundedHash(), columns)
    columns.mask[home] = 1
    assert best(b.BoundedHash(), columns) == [second]  # 2 > 1.25 x 2 / 3
    for slot in range(3):
        columns.requests[slot] = 10
    assert best(b.BoundedHash(), columns) == [home]


def test_dualmap_takes_the_warm_one_of_two() -> None:
    columns = Columns()
    columns.hit_tokens = array("d", [0.0, 0.0, 0.0])
    pair = {*best(b.DualMap(), columns)}
    columns.prefill_tokens = array("d", [1e6 if slot in pair else 5e5 for slot in range(3)])
    pair |= {*best(b.DualMap(), columns)}
    assert len(pair) == 2
    warm = max(pair)
    columns.prefill_tokens = array("d", [100.0 * (slot == warm) for slot in range(3)])
    columns.hit_tokens[warm] = 900.0
    assert best(b.DualMap(), columns) == [warm]
    assert best(b.DualMap(slo_s=0.001), columns) == [min(pair)]


def test_power_of_two_takes_the_shorter_of_two() -> None:
    columns, order = Columns(), array("i", [0] * 5)
    columns.requests = array("i", [0, 5, 9])
    firsts = set()
    for rand in range(36):
        assert b.PowerOfTwo().pick(columns, array("d"), 5, rand, order) == 3
        firsts.add(order[0])
        assert sorted(order[:3]) == [0, 1, 2]
    assert firsts == {0, 1}  # the longest queue loses against either


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_decides_for_itself(name: str) -> None:
    """In the lab, through the real core: no decision falls back, no request is lost."""
    build_parts(PoolConfig(policy=name), "pools[0]")
    chats = generate("chat", 15, seed=2)
    found = Lab(chats, PoolConfig(policy=name), LabOptions(rate=8.0)).run()
    assert found.fallbacks == 0
    assert len(found.done) == chats.requests
