"""Predicted first tokens and ends: they drain the ledger, and scrapes correct them."""

from __future__ import annotations

import pytest

from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.predicted import Predicted
from warmlane.router.types import Kind, LoadSnapshot, Outcome, Request

PROMPT = 3200 * 4  # bytes: 3,200 tokens at the first guess of 4 bytes a token


def build(count: int = 2) -> tuple[Router, Predicted]:
    replicas = [f"http://10.0.0.{number}:80" for number in range(1, count + 1)]
    router = Router(from_data({"pools": [{"replicas": replicas}]}))
    return router, Predicted(router, prefill_tokens_per_s=1600.0, output_tokens_per_s=64.0)


def send(router: Router, predicted: Predicted, now: float, *, end: bool = True) -> tuple[int, int]:
    """(ticket, slot) of a request of 3,200 uncached tokens and 256 of output."""
    prompt = bytes([int(now * 7) % 251]) * PROMPT
    request = Request(kind=Kind.COMPLETIONS, prompt=prompt)
    decision = router.decide(request, now, 1)
    slot = decision.choices[0]
    router.sent(decision.ticket, slot, now)
    predicted.watch(decision.ticket, slot, now, end=end)
    return decision.ticket, slot


def test_prefill_and_then_the_answer_end_when_predicted() -> None:
    router, predicted = build(1)
    send(router, predicted, 0.0)
    ledger = router.pools["default"].ledger
    predicted.tick(1.9)
    assert (ledger.running[0], ledger.prefill_tokens[0]) == (0, 3200)
    predicted.tick(2.1)
    assert (ledger.running[0], ledger.prefill_tokens[0]) == (1, 0)
    predicted.tick(5.9)
    assert router.open_tickets == len(predicted) == 1
    predicted.tick(6.1)
    assert router.open_tickets == len(predicted) == 0


def test_prefill_waits_for_what_is_in_front_of_it() -> None:
    router, predicted = build(1)
    send(router, predicted, 0.0)
    send(router, predicted, 0.2)
    ledger = router.pools["default"].ledger
    predicted.tick(2.1)
    assert ledger.running[0] == 1
    predicted.tick(4.3)
    assert ledger.running[0] == 2


def test_without_an_end_only_the_first_token_is_told() -> None:
    router, predicted = build(1)
    ticket, _ = send(router, predicted, 0.0, end=False)
    predicted.tick(100.0)
    assert router.pools["default"].ledger.running[0] == 1
    assert router.open_tickets == 1 and len(predicted) == 0
    router.close(ticket, Outcome(), 101.0)


def test_where_ends_are_seen_the_first_token_comes_at_the_pace_that_was_learned() -> None:
    router, predicted = build(1)
    pool = router.pools["default"]
    pool.pace.tokens_per_s[0] = 6400.0
    ticket, _ = send(router, predicted, 0.0, end=False)
    predicted.tick(0.4)
    assert pool.ledger.running[0] == 0
    predicted.tick(0.6)
    assert pool.ledger.running[0] == 1, "3,200 tokens at 6,400 a second, not at the guess"
    router.close(ticket, Outcome(), 1.0)


def test_where_ends_are_predicted_the_learned_pace_does_not_count_twice() -> None:
    router, predicted = build(1)
    pool = router.pools["default"]
    pool.pace.tokens_per_s[0] = 6400.0
    send(router, predicted, 0.0)
    predicted.tick(1.9)
    assert pool.ledger.running[0] == 0
    predicted.tick(100.0)
    assert router.open_tickets == 0


def test_a_ticket_that_somebody_closed_is_forgotten() -> None:
    router, predicted = build(1)
    ticket, _ = send(router, predicted, 0.0)
    router.close(ticket, Outcome(), 1.0)
    predicted.tick(100.0)
    assert len(predicted) == 0
    assert router.pools["default"].ledger.stale_events == 0


def scrape(router: Router, running: float, waiting: float, now: float) -> None:
    load = LoadSnapshot(taken_at=now, running=running, waiting=waiting)
    router.pools["default"].update_load(0, load)


def test_a_scrape_closes_what_the_engine_no_longer_has() -> None:
    router, predicted = build(1)
    for _ in range(4):
        send(router, predicted, 0.0)
    scrape(router, running=1, waiting=0, now=3.0)
    assert router.open_tickets == 1
    assert predicted.pace("default", 0) < 1.0
    assert router.pools["default"].foreign.requests[0] == 0


def test_a_scrape_says_nothing_about_a_request_on_its_way() -> None:
    router, predicted = build(1)
    send(router, predicted, 0.0)
    send(router, predicted, 2.9)
    scrape(router, running=0, waiting=0, now=3.0)
    assert router.open_tickets == 1
    scrape(router, running=1, waiting=0, now=3.5)
    assert router.open_tickets == 1


def test_more_than_we_know_slackens_the_pace_within_bounds() -> None:
    router, predicted = build(1)
    for number in range(200):
        scrape(router, running=50, waiting=0, now=3.0 + number)
        assert predicted.pace("default", 0) == 1.0, "nothing of ours is there to be judged by"
    send(router, predicted, 300.0)
    for number in range(200):
        scrape(router, running=50, waiting=0, now=302.0 + number)
    assert predicted.pace("default", 0) == pytest.approx(4.0)


def test_predictions_that_are_too_long_refuse_nobody() -> None:
    data = {"pools": [{"replicas": ["http://10.0.0.1:80"]}], "limits": {"tickets": 10}}
    router = Router(from_data(data))
    predicted = Predicted(router, prefill_tokens_per_s=1e-6)
    for number in range(30):
        send(router, predicted, 0.2 * number)
    assert len(predicted) == router.open_tickets == 9
    counts = router.metrics.counts["warmlane_limits_reached_total"]
    assert counts == {("predicted_tickets",): 21}
