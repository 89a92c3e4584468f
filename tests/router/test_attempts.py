"""Which failures move a request, and how the retry budget bounds them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from warmlane.router.attempts import COUNTED, RETRYABLE, Attempts, Fault, RetryBudget, classify
from warmlane.router.config import Retry


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


def nobody(ready_only: bool) -> tuple[int, ...]:
    return ()


def after(
    attempts: Attempts,
    fault: Fault,
    ready: Callable[[int], bool] = everybody,
    rest: Callable[[bool], tuple[int, ...]] = nobody,
) -> int:
    return attempts.next(fault, 0.0, ready, rest)


def test_attempts_follow_the_order_and_end() -> None:
    attempts = Attempts((4, 7, 1, 9), budget(minimum=100), 3)
    assert after(attempts, Fault.RESET) == 7
    assert after(attempts, Fault.CONNECT) == 1
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

    def rest(ready_only: bool) -> tuple[int, ...]:
        asked.append(ready_only)
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
    assert after(Attempts((4,), spent, 3), Fault.RESET, rest=lambda ready_only: (5,)) == -1
