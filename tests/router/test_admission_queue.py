"""Who goes next: shares of tenants, levels, age, and that nobody is lost or served twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmlane.router.admission_queue import (
    AGED_EVERY,
    OTHERS,
    QUANTUM_TOKENS,
    WINDOW,
    FairQueue,
    Item,
)


def queue(weights: dict[str, float] | None = None, tenants: int = 64) -> FairQueue:
    return FairQueue(weights or {}, tenants, 1e9)


def item(
    tenant: str = "", level: int = 0, *, fresh: bool = False, at: float = 0.0, work: float = 1.0
) -> Item:
    return Item(tenant, level, fresh, at, work)


def yes(item: Item) -> bool:
    return True


def no(item: Item) -> bool:
    return False


def drained(waiting: FairQueue, costs: dict[str, float], places: int) -> Counter[str]:
    """Tokens that each tenant had after so many places; its line never ends."""
    had: Counter[str] = Counter()
    for _ in range(places):
        found = waiting.pop(yes, 0.0)
        assert found is not None
        cost = costs[found.tenant]
        waiting.charge(found.tenant, cost)
        had[found.tenant] += int(cost)
        waiting.push(item(found.tenant))
    return had


@given(
    costs=st.lists(st.integers(1, 50_000), min_size=2, max_size=5),
    depth=st.integers(2, 5),
    data=st.data(),
)
def test_tenants_share_by_weight_whatever_their_requests_cost(
    costs: list[int], depth: int, data: st.DataObject
) -> None:
    names = [f"tenant {number}" for number in range(len(costs))]
    weights = {name: data.draw(st.sampled_from([0.5, 1.0, 2.0])) for name in names}
    waiting = queue(weights)
    for name in names:
        for _ in range(depth):
            waiting.push(item(name))
    priced = dict(zip(names, map(float, costs), strict=True))
    had = drained(waiting, priced, 2000)
    # Deficit round robin: shares differ by at most a quantum and a request of either side.
    for one in names:
        for other in names:
            gap = abs(had[one] / weights[one] - had[other] / weights[other])
            bound = 2 * (QUANTUM_TOKENS + max(costs) / min(weights.values()))
            assert gap <= 2 * bound, (had, weights)


def test_a_flood_does_not_delay_another_tenant() -> None:
    waiting = queue()
    for _ in range(1000):
        waiting.push(item("flood"))
    for _ in range(50):  # it has had its share, and more
        waiting.pop(yes, 0.0)
        waiting.charge("flood", 3000.0)
    waiting.push(item("calm"))
    first = [waiting.pop(yes, 0.0) for _ in range(3)]
    assert "calm" in [found.tenant for found in first if found is not None]


def test_a_tenant_saves_nothing_up_while_it_is_away() -> None:
    waiting = queue()
    for name in ("a", "b"):
        waiting.push(item(name))
    for _ in range(2):
        found = waiting.pop(yes, 0.0)
        assert found is not None
        waiting.charge(found.tenant, 10.0)
    assert all(account.deficit <= 0.0 for account in waiting.accounts.values())


def test_debts_outlive_an_empty_line_and_are_forgiven_when_nobody_competes() -> None:
    waiting = queue()
    waiting.push(item("a"))
    waiting.pop(yes, 0.0)
    waiting.charge("a", 9000.0)
    assert waiting.accounts["a"].deficit < 0.0
    waiting.forget()
    assert not waiting.accounts


def test_levels_are_strict_until_somebody_is_old() -> None:
    waiting = FairQueue({}, 64, 10.0)
    old = item(level=5, at=0.0)
    waiting.push(old)
    for _ in range(20):
        waiting.push(item(level=-1, at=100.0))
    young = [waiting.pop(yes, 5.0) for _ in range(2 * AGED_EVERY)]
    assert old not in young
    aged = [waiting.pop(yes, 100.0) for _ in range(AGED_EVERY)]
    assert aged.count(old) == 1, "one place of four"


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60))
def test_nobody_starves_under_a_flood_of_high_priority(levels: list[int]) -> None:
    waiting = FairQueue({}, 64, 1.0)
    early = [item(level=level, at=0.0) for level in levels]
    for each in early:
        waiting.push(each)
    places = 0
    while any(each in list(waiting) for each in early):
        waiting.push(item(level=-9, at=2.0 + places))
        assert waiting.pop(yes, 2.0 + places) is not None
        places += 1
        assert places <= AGED_EVERY * (len(levels) + 1)


def test_the_least_work_of_a_tenant_goes_first_within_the_window() -> None:
    waiting = queue()
    items = [item(work=100.0 - number) for number in range(WINDOW + 1)]
    for each in items:
        waiting.push(each)
    assert waiting.pop(yes, 0.0) is items[WINDOW - 1]
    assert waiting.pop(yes, 0.0) is items[WINDOW]


def test_new_sessions_wait_for_memory_and_the_others_pass_them() -> None:
    waiting = queue()
    fresh, known = item(fresh=True, work=1.0), item(work=5.0)
    waiting.push(fresh)
    waiting.push(known)
    assert waiting.fresh == 1
    assert waiting.pop(no, 0.0) is known
    assert waiting.pop(no, 0.0) is None
    assert waiting.pop(yes, 0.0) is fresh
    assert not waiting


def test_tenants_beyond_the_bound_share_one_place() -> None:
    waiting = queue(tenants=2)
    for name in ("a", "b"):
        waiting.push(item(waiting.tenant(name)))
    assert waiting.tenant("c") == OTHERS
    assert waiting.tenant("a") == "a"
    assert waiting.pop(yes, 0.0) is not None  # a leaves without a debt: its place is free
    waiting.charge("a", -1e6)
    assert waiting.tenant("c") == "c"


@pytest.mark.parametrize("tenants", [1, 3])
@given(st.data())
def test_each_request_leaves_once(tenants: int, data: st.DataObject) -> None:
    waiting = queue()
    inside: list[Item] = []
    for step in range(data.draw(st.integers(1, 80))):
        what = data.draw(st.sampled_from(["push", "push", "pop", "remove"]))
        if what == "push":
            new = item(
                f"t{data.draw(st.integers(1, tenants))}",
                data.draw(st.integers(-1, 1)),
                fresh=data.draw(st.booleans()),
                at=float(step),
                work=data.draw(st.floats(0, 1e5)),
            )
            inside.append(new)
            waiting.push(new)
        elif what == "pop":
            fits = data.draw(st.sampled_from([yes, no]))
            found = waiting.pop(fits, float(step))
            able = [each for each in inside if fits is yes or not each.fresh]
            assert (found is None) == (not able)
            if found is not None:
                inside.remove(found)
                waiting.charge(found.tenant, data.draw(st.floats(0, 1e5)))
        elif inside:
            chosen = data.draw(st.sampled_from(inside))
            inside.remove(chosen)
            assert waiting.remove(chosen)
            assert not waiting.remove(chosen)
        assert len(waiting) == len(inside)
        assert set(waiting) == set(inside)
        counts = Counter(each.tenant for each in inside)
        told = {name: account.waiting for name, account in waiting.accounts.items()}
        assert {name: count for name, count in told.items() if count} == counts
