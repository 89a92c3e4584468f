"""Which failures move a request, and how the retry budget bounds them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from warmlane.router.attempts import (
    COUNTED,
    MAX_UNREACHED,
    RETRYABLE,
    Attempts,
    Fault,
    RetryBudget,
    classify,
)
from warmlane.router.config import Retry
from warmlane.router.types import Rest


@pytest.mark.parametrize(
    ("status", "openai", "fault"),
    [
        (200, False, None),
        (400, True, None),
        (404, False, None),
        (422, True, None),
        (429, False, Fault.BACKPRESSURE),
        (499, False, None),
        (500, True, Fault.SERVER),
        (501, False, Fault.SERVER),
        (502, True, Fault.GATEWAY),
        (503, True, Fault.BACKPRESSURE),
        (503, False, Fault.GATEWAY),
        (504, False, Fault.GATEWAY),
    ],
)
def test_classes(status: int, openai: bool, fault: Fault | None) -> None:
    assert classify(status, openai) is fault


def test_back_pressure_never_counts_and_engine_errors_never_move() -> None:
    assert Fault.BACKPRESSURE not in COUNTED
    assert Fault.BACKPRESSURE in RETRYABLE
    assert Fault.SERVER in COUNTED
    assert Fault.SERVER not in RETRYABLE


def budget(ratio: float = 0.2, minimum: int = 0, window: float = 10.0) -> RetryBudget:
    settings = Retry(budget_ratio=ratio, budget_min=minimum, budget_window_s=window)
    return RetryBudget(settings, 0.0)


def test_budget_is_a_share_of_requests() -> None:
    spent = budget()
    for _ in range(100):
        spent.request()
    assert sum(spent.take(1.0) for _ in range(50)) == 20


def test_budget_minimum_holds_without_traffic() -> None:
    spent = budget(minimum=3)
    assert [spent.take(0.0) for _ in range(5)] == [True, True, True, False, False]


def test_budget_slides() -> None:
    spent = budget()
    for _ in range(100):
        spent.request()
    for _ in range(20):
        assert spent.take(9.9)
    assert not spent.take(9.9)
    # Half a window later half of the requests and half of the retries have left it: still empty.
    assert not spent.take(15.0)
    for _ in range(50):
        spent.request()
    assert sum(spent.take(15.0) for _ in range(50)) == 10
    # Two windows later nothing of it counts.
    assert not spent.take(40.0)


def test_budget_never_exceeds_the_share_over_any_run() -> None:
    spent = budget(ratio=0.1, window=1.0)
    taken = 0
    for step in range(10_000):
        now = step / 100
        spent.request()
        spent.roll(now)
        taken += spent.take(now)
    assert taken <= 0.11 * 10_000


def everybody(slot: int) -> bool:
    return True


def nobody(wanted: Rest) -> tuple[int, ...]:
    return ()


def after(
    attempts: Attempts,
    fault: Fault,
    ready: Callable[[int], bool] = everybody,
    rest: Callable[[Rest], tuple[int, ...]] = nobody,
) -> int:
    return attempts.next(fault, 0.0, ready, rest)


def test_attempts_follow_the_order_and_end() -> None:
    attempts = Attempts((4, 7, 1, 9), budget(minimum=100), 3)
    assert after(attempts, Fault.RESET) == 7
    assert after(attempts, Fault.TIMEOUT) == 1
    assert attempts.tried == 3
    assert after(attempts, Fault.RESET) == -1  # three tries in all


def test_attempts_skip_what_is_not_ready() -> None:
    attempts = Attempts((4, 7, 1, 9), budget(minimum=100), 10)
    assert after(attempts, Fault.RESET, {1}.__contains__) == 1
    assert after(attempts, Fault.RESET, {1}.__contains__) == -1
    assert after(attempts, Fault.RESET, {7}.__contains__) == 7  # it is back meanwhile


def test_the_rest_of_the_pool_comes_after_the_choices() -> None:
    """Asked for anew each time, because the states change; nobody is tried twice."""
    attempts = Attempts((4, 7), budget(minimum=100), 10)
    asked: list[bool] = []

    def rest(wanted: Rest) -> tuple[int, ...]:
        asked.append(wanted.ready_only)
        return (4, 7, 2, 3)

    assert after(attempts, Fault.RESET, rest=rest) == 7
    assert asked == []
    assert after(attempts, Fault.RESET, rest=rest) == 2
    assert after(attempts, Fault.BACKPRESSURE, rest=rest) == 3
    assert after(attempts, Fault.RESET, rest=rest) == -1
    assert asked == [False, True, False]  # one that is full gives no reason to ask the ill


def test_a_try_that_cannot_be_made_costs_no_budget() -> None:
    spent = budget(minimum=1)
    assert after(Attempts((4,), spent, 3), Fault.RESET) == -1
    assert after(Attempts((4, 5), spent, 1), Fault.RESET) == -1
    assert after(Attempts((4, 5), spent, 3), Fault.SERVER) == -1
    assert after(Attempts((4, 5), spent, 3), Fault.RESET) == 5
    assert after(Attempts((4, 5), spent, 3), Fault.RESET) == -1
    assert after(Attempts((4,), spent, 3), Fault.RESET, rest=lambda wanted: (5,)) == -1


@pytest.mark.parametrize("fault", [Fault.CONNECT, Fault.MISSING])
def test_what_no_engine_worked_on_costs_no_budget(fault: Fault) -> None:
    empty = budget()
    attempts = Attempts((4, 7, 1), empty, 3)
    assert after(attempts, fault) == 7
    assert after(attempts, Fault.RESET) == -1


def test_what_was_open_on_a_replica_that_broke_moves_once() -> None:
    """However many they are but one, which may have broken it. What comes later is paid from the
    budget, until a window is over."""
    empty = budget(window=10.0)
    for left in (4, 3, 2):
        empty.broke(4, left, 1.0)  # each of them says so
    assert [empty.take(1.0, 4) for _ in range(5)] == [True] * 3 + [False] * 2
    assert not empty.take(1.0, 5), "another replica"
    empty.broke(4, 3, 10.0)
    assert not empty.take(10.0, 4), "it breaks again within the window"
    empty.broke(4, 3, 11.0)
    assert [empty.take(11.0, 4) for _ in range(3)] == [True, True, False]
    empty.broke(6, 1, 11.0)
    assert not empty.take(11.0, 6), "a request alone is the one"
    empty.broke(4, 5, 30.0)
    assert not empty.take(41.0, 4), "a grant does not outlive its window"


def zoned(choices: tuple[int, ...], limit: int = 10) -> Attempts:
    """Slots below 10 are in zone a, below 20 in b, the others nowhere."""
    zones = "a" * 10 + "b" * 10
    return Attempts(choices, budget(minimum=100), limit, lambda s: zones[s] if s < 20 else "")


def test_a_zone_that_seems_lost_is_avoided() -> None:
    asked: list[frozenset[str]] = []

    def rest(wanted: Rest) -> tuple[int, ...]:
        asked.append(wanted.avoid)
        return (13, 5)

    attempts = zoned((1, 2, 3, 12))
    assert after(attempts, Fault.RESET) == 2, "one replica alone says nothing of its zone"
    assert after(attempts, Fault.CONNECT) == 12
    assert after(attempts, Fault.BACKPRESSURE, rest=rest) == 13, "not 3, which is near and ready"
    assert asked == [frozenset("a")]
    attempts = zoned((1, 2, 3), limit=3)
    assert after(attempts, Fault.TIMEOUT, rest=rest) == 2
    assert after(attempts, Fault.CONNECT, rest=rest) == 13


def test_a_lost_zone_is_better_than_nobody() -> None:
    def rest(wanted: Rest) -> tuple[int, ...]:
        return (5, 13)  # the ready one first

    attempts = zoned((1, 2, 3))
    after(attempts, Fault.RESET)
    near = {1, 2, 3, 5}.__contains__
    assert after(attempts, Fault.RESET, near, rest) == 3, "b has nobody who is ready"
    assert after(attempts, Fault.RESET, near, rest) == 5
    assert after(attempts, Fault.RESET, near, rest) == 13


def test_full_replicas_and_unknown_zones_say_nothing_of_a_zone() -> None:
    attempts = zoned((1, 2, 3, 12))
    for wanted in (2, 3):
        assert after(attempts, Fault.BACKPRESSURE) == wanted
    attempts = zoned((21, 22, 23, 12))
    for wanted in (22, 23, 12):
        assert after(attempts, Fault.RESET) == wanted


def test_a_connection_that_cannot_be_made_is_no_try() -> None:
    """Up to a bound; and who wants no retries gets none."""

    def rest(wanted: Rest) -> tuple[int, ...]:
        assert wanted.tried
        return tuple(slot for slot in range(50) if slot not in wanted.tried)[:5]

    attempts = Attempts((0, 1), budget(minimum=100), 3)
    assert after(attempts, Fault.RESET, rest=rest) == 1
    for slot in range(2, 2 + MAX_UNREACHED):
        assert after(attempts, Fault.CONNECT, rest=rest) == slot
    assert after(attempts, Fault.CONNECT, rest=rest) == 2 + MAX_UNREACHED, "the third try"
    assert after(attempts, Fault.CONNECT, rest=rest) == -1
    assert after(Attempts((0, 1), budget(minimum=100), 1), Fault.CONNECT, rest=rest) == -1
