"""The gate of a pool: when it opens, who waits for what, and that each request ends once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmlane.router.admission_line import Waiting
from warmlane.router.config import Config
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.errors import NoReplica, RouterError
from warmlane.router.types import (
    Decision,
    Kind,
    LoadSnapshot,
    Outcome,
    ReplicaState,
    Request,
)

BLOCK = 16
CAPACITY = 100_000


class Desk:
    """A router on a clock of its own, whose requests' ends are written down."""

    def __init__(self, replicas: int = 2, joining: bool = False, **admission: Any) -> None:
        settings = {"enabled": True, "backlog_s": 0.5, "unstarted": 2, **admission}
        self.config: Config = from_data(
            {
                "admission": settings,
                "pools": [
                    {
                        "replicas": [f"http://10.0.0.{n}:8000" for n in range(1, replicas + 1)],
                        "models": ["m"],
                        "capacity_tokens": CAPACITY,
                    }
                ],
            }
        )
        self.now = 0.0
        self.router = Router(self.config, joining=joining)
        gate = self.router.lanes["default"].gate
        assert gate is not None
        self.gate = gate
        self.pool = self.router.pools["default"]
        self.told: dict[int, Decision | RouterError] = {}
        self.sent: list[Decision] = []
        self.number = 0

    def ask(
        self, tokens: int = 20_000, first: int | None = None, **fields: Any
    ) -> Decision | Waiting:
        """A request with this many tokens; `first`: of the chain of its blocks."""
        self.number += 1
        number = self.number
        start = number * 1_000_000 if first is None else first
        ids = b"".join((start + n // BLOCK).to_bytes(4, "little") for n in range(tokens))
        request = Request(kind=Kind.COMPLETIONS, model="m", tokens=ids, max_tokens=8, **fields)
        found = self.router.ask(
            request, self.now, number, lambda what: self.hear(number, what), 100
        )
        if isinstance(found, Decision):
            self.go(found)
        return found

    def hear(self, number: int, what: Decision | RouterError) -> None:
        assert number not in self.told, "told twice"
        self.told[number] = what
        if isinstance(what, Decision):
            self.go(what)

    def go(self, decision: Decision) -> None:
        self.router.sent(decision.ticket, decision.choices[0], self.now)
        self.sent.append(decision)

    def fill(self) -> list[Decision]:
        """Until nobody has room."""
        before = len(self.sent)
        while self.gate.load.room():
            self.ask()
        return self.sent[before:]

    def saturate(self) -> list[Decision]:
        """Full, and seen to be."""
        decisions = self.fill()
        self.pass_s(0.1)
        assert self.gate.active
        return decisions

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.router.maintain(self.now)

    def first_token(self, decision: Decision) -> None:
        self.router.first_token(decision.ticket, self.now)
        self.router.release(self.now)

    def close(self, decision: Decision) -> None:
        outcome = Outcome(prompt_tokens=decision.prompt_tokens, output_tokens=8)
        self.router.close(decision.ticket, outcome, self.now)


def started() -> Desk:
    desk = Desk()
    desk.pass_s(0.1)
    return desk


def test_nothing_is_asked_while_there_is_room() -> None:
    desk = started()
    assert not desk.gate.active
    for _ in range(20):
        decision = desk.ask()
        assert isinstance(decision, Decision)
        desk.first_token(decision)
        desk.close(decision)
        desk.pass_s(1.0)
    assert not desk.gate.active
    assert not desk.router.metrics.counts["warmlane_admission_total"]


def test_it_waits_past_saturation_and_goes_where_room_comes_up() -> None:
    desk = started()
    under_way = desk.saturate()
    found = desk.ask()
    assert isinstance(found, Waiting)
    there = [each for each in under_way if each.choices[0] == 1]
    for each in there:
        desk.first_token(each)
    late = desk.told[desk.number]
    assert isinstance(late, Decision)
    assert late.choices[0] == 1, "bound when it goes, to the one with room"


def test_who_comes_later_does_not_pass_who_waits() -> None:
    desk = started()
    desk.saturate()
    assert isinstance(desk.ask(), Waiting)
    desk.pool.set_state(0, ReplicaState.EJECTED)
    desk.gate.config = desk.gate.config
    assert isinstance(desk.ask(), Waiting)


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"queue_requests": 1}, "queue_full"), ({"queue_bytes": 150}, "queue_full")],
)
def test_bounds(settings: dict[str, Any], code: str) -> None:
    desk = Desk(**settings)
    desk.pass_s(0.1)
    desk.saturate()
    assert isinstance(desk.ask(), Waiting)
    with pytest.raises(NoReplica) as refused:
        desk.ask()
    assert (refused.value.status, refused.value.code) == (429, code)
    assert refused.value.retry_after_s is not None and refused.value.retry_after_s >= 1.0
    assert len(desk.gate.queue) == 1


@pytest.mark.parametrize(("wait_s", "seconds"), [(None, 30.0), (2.0, 2.0), (100.0, 30.0)])
def test_a_wait_ends_at_the_deadline(wait_s: float | None, seconds: float) -> None:
    desk = started()
    desk.saturate()
    found = desk.ask(wait_s=wait_s)
    assert isinstance(found, Waiting)
    desk.pass_s(seconds - 0.5)
    assert not desk.told
    desk.pass_s(0.6)
    error = desk.told[desk.number]
    assert isinstance(error, NoReplica)
    assert (error.status, error.code) == (429, "queue_timeout")
    assert not desk.gate.queue and desk.gate.queue.bytes == 0


def test_a_client_that_leaves_leaves_the_queue() -> None:
    desk = started()
    under_way = desk.saturate()
    gone, stays = desk.ask(), desk.ask()
    assert isinstance(gone, Waiting) and isinstance(stays, Waiting)
    gone.cancel()
    gone.cancel()
    assert desk.gate.queue.bytes == 100
    for each in under_way:
        desk.first_token(each)
    assert list(desk.told) == [desk.number]


def test_a_caller_that_cannot_wait_is_refused() -> None:
    desk = started()
    desk.saturate()
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"x" * 4000)
    with pytest.raises(NoReplica) as refused:
        desk.router.decide(request, desk.now, 1)
    assert (refused.value.status, refused.value.code) == (429, "all_replicas_busy")


@pytest.mark.parametrize(("shed", "code"), [(True, "low_priority_shed"), (False, None)])
def test_less_than_normal_importance_is_shed(shed: bool, code: str | None) -> None:
    desk = Desk(shed_negative=shed)
    desk.pass_s(0.1)
    desk.saturate()
    if code is None:
        assert isinstance(desk.ask(priority=1), Waiting)
        return
    with pytest.raises(NoReplica) as refused:
        desk.ask(priority=1)
    assert refused.value.code == code


def test_it_waits_for_a_replica_to_be_ready() -> None:
    desk = Desk(joining=True)
    found = desk.ask()
    assert isinstance(found, Waiting)
    desk.pass_s(5.0)
    assert not desk.told
    desk.pool.set_state(1, ReplicaState.READY)
    desk.router.release(desk.now)
    decision = desk.told[desk.number]
    assert isinstance(decision, Decision) and decision.choices[0] == 1
    assert not decision.fallback


def test_after_that_wait_the_last_resort_is_tried() -> None:
    desk = Desk(joining=True, room_s=3.0)
    assert isinstance(desk.ask(), Waiting)
    desk.pass_s(3.1)
    decision = desk.told[desk.number]
    assert isinstance(decision, Decision) and decision.fallback


def test_without_any_replica_it_is_503() -> None:
    desk = Desk(replicas=0, room_s=3.0)
    assert isinstance(desk.ask(), Waiting)
    desk.pass_s(3.1)
    error = desk.told[desk.number]
    assert isinstance(error, NoReplica) and error.status == 503


def test_a_pool_that_goes_refuses_who_waits() -> None:
    desk = started()
    desk.saturate()
    assert isinstance(desk.ask(), Waiting)
    desk.router.reload(from_data({"admission": {"enabled": True}, "pools": [{"name": "other"}]}))
    error = desk.told[desk.number]
    assert isinstance(error, NoReplica) and error.status == 503


def test_the_queue_is_given_up_once_there_is_room_for_long() -> None:
    desk = started()
    under_way = desk.saturate()
    for each in under_way:
        desk.first_token(each)
        desk.close(each)
    for _ in range(100):
        desk.pass_s(1.0)
    assert not desk.gate.active


def test_a_turn_that_fails_to_be_told_costs_its_request_alone() -> None:
    desk = started()
    under_way = desk.saturate()
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"x" * 4000)

    def breaks(what: object) -> None:
        raise ZeroDivisionError

    assert isinstance(desk.router.ask(request, desk.now, 1, breaks), Waiting)
    assert isinstance(desk.ask(), Waiting)
    for each in under_way:
        desk.first_token(each)
        desk.close(each)
    desk.pass_s(0.1)
    assert isinstance(desk.told[desk.number], Decision)
    desk.close(desk.sent[-1])
    assert desk.router.open_tickets == 0


# Sessions


def talking(desk: Desk, sessions: int, turns: int, tokens: int) -> None:
    """Sessions that lose their contexts again and again, near saturation."""
    for turn in range(turns):
        for number in range(sessions):
            found = desk.ask(tokens + BLOCK * turn, first=number * 10_000_000)
            if isinstance(found, Decision):
                desk.first_token(found)
                desk.close(found)
        desk.gate._watch_until = desk.now + 10.0
        desk.pass_s(1.0)


def test_new_sessions_wait_while_live_ones_lose_their_contexts() -> None:
    desk = Desk(replicas=1)
    desk.pass_s(0.1)
    desk.pool.update_load(
        0, LoadSnapshot(taken_at=0.0, block_size=BLOCK, num_blocks=CAPACITY // BLOCK)
    )
    talking(desk, sessions=12, turns=40, tokens=20_000)
    assert desk.gate.sessions.lost_share > 0.05
    assert desk.gate.working_set > 1.0
    under_way = desk.ask(20_000, first=0)  # else the replica would stand still, and take it
    assert isinstance(under_way, Decision)
    desk.first_token(under_way)
    assert isinstance(desk.ask(20_000), Waiting), "a new one"
    assert isinstance(desk.ask(20_000 + BLOCK * 50, first=10_000_000), Decision), "goes on"
    described = desk.gate.sessions
    assert len(described) >= 12


def test_prompts_that_nobody_continues_keep_nobody_out() -> None:
    desk = Desk(replicas=1)
    desk.pass_s(0.1)
    for _ in range(200):
        found = desk.ask(20_000)
        assert isinstance(found, Decision)
        desk.first_token(found)
        desk.close(found)
        desk.gate._watch_until = desk.now + 10.0
        desk.pass_s(1.0)
    assert desk.gate.sessions.tokens < 10_000


@given(st.lists(st.sampled_from(["ask", "token", "close", "leave", "time", "away"]), max_size=60))
def test_each_request_ends_once_whatever_happens(steps: list[str]) -> None:
    desk = Desk(wait_s=5.0, queue_requests=8, session_s=3.0)
    waiting: list[Waiting] = []
    refused = 0
    for step in steps:
        if step == "ask":
            try:
                found = desk.ask(5000, first=1_000_000 * (desk.number % 3))
            except NoReplica:
                refused += 1
                continue
            if isinstance(found, Waiting):
                waiting.append(found)
        elif step == "token" and desk.sent:
            desk.first_token(desk.sent[0])
        elif step == "close" and desk.sent:
            desk.close(desk.sent.pop(0))
        elif step == "leave" and waiting:
            waiting.pop(0).cancel()
        elif step == "time":
            desk.pass_s(2.0)
        elif step == "away":
            state = desk.pool.replicas[0].state  # type: ignore[union-attr]
            ready = state is ReplicaState.READY
            desk.pool.set_state(0, ReplicaState.EJECTED if ready else ReplicaState.READY)
    desk.pass_s(20.0)
    desk.pass_s(20.0)
    assert not desk.gate.queue and desk.gate.queue.bytes == 0
    for decision in desk.sent:
        desk.close(decision)
    assert desk.router.open_tickets == 0
    sessions = desk.gate.sessions
    assert not sessions._open and not desk.gate._open
