"""A gate under a new config, and what `explain` says of it: always what would really happen."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.router.test_admission import BLOCK, CAPACITY, Desk, started, talking
from warmlane.router.admission_line import Waiting
from warmlane.router.admission_outlook import Outlook
from warmlane.router.config_admission import Admission
from warmlane.router.errors import NoReplica
from warmlane.router.types import Decision, Kind, LoadSnapshot, ReplicaState, Request


def reloaded(desk: Desk, **changes: Any) -> None:
    """As SIGHUP with other settings of admission."""
    admission = msgspec.structs.replace(desk.config.admission, **changes)
    desk.config = msgspec.structs.replace(desk.config, admission=admission)
    desk.router.reload(desk.config, desk.now)


def prompt(tokens: int, start: int) -> bytes:
    return b"".join((start + n // BLOCK).to_bytes(4, "little") for n in range(tokens))


def outlook(desk: Desk, tokens: int = 20_000, first: int = 77_000_000, **fields: Any) -> Outlook:
    request = Request(
        kind=Kind.COMPLETIONS, model="m", tokens=prompt(tokens, first), max_tokens=8, **fields
    )
    found = desk.router.explain(request, desk.now).admission
    assert found is not None
    return found


# Settings change under way


def test_who_waits_goes_when_there_is_more_room() -> None:
    desk = started()
    desk.saturate()
    assert isinstance(desk.ask(), Waiting)
    reloaded(desk, unstarted=50, backlog_s=100.0)
    assert isinstance(desk.told[desk.number], Decision)


def test_smaller_bounds_send_nobody_away_who_waits() -> None:
    desk = started()
    desk.saturate()
    numbers = []
    for _ in range(5):
        assert isinstance(desk.ask(), Waiting)
        numbers.append(desk.number)
    reloaded(desk, queue_requests=2, queue_bytes=1, wait_s=0.2, tenants=1, sessions=1)
    desk.pass_s(29.0)  # the 30 s of the config under which they came
    assert not desk.told and len(desk.gate.queue) == 5
    with pytest.raises(NoReplica) as full:
        desk.ask()
    assert full.value.code == "queue_full"
    at = 0
    while at < len(desk.sent):  # those too that go on the way
        desk.first_token(desk.sent[at])
        desk.close(desk.sent[at])
        desk.router.release(desk.now)
        at += 1
    assert all(isinstance(desk.told[number], Decision) for number in numbers)


def test_a_longer_wait_counts_for_those_who_wait_and_no_deadline_is_passed() -> None:
    desk = started()
    desk.saturate()
    assert isinstance(desk.ask(), Waiting)
    assert isinstance(desk.ask(wait_s=40.0), Waiting)
    reloaded(desk, wait_s=60.0)
    desk.pass_s(39.0)
    assert not desk.told
    desk.pass_s(2.0)
    assert isinstance(desk.told[desk.number], NoReplica)
    assert desk.number - 1 not in desk.told
    desk.pass_s(20.0)
    assert isinstance(desk.told[desk.number - 1], NoReplica)


def test_switched_off_everybody_goes_and_on_again_it_works() -> None:
    desk = started()
    desk.saturate()
    for _ in range(4):
        assert isinstance(desk.ask(), Waiting)
    reloaded(desk, enabled=False)
    assert len(desk.told) == 4
    assert all(isinstance(what, Decision) for what in desk.told.values())
    assert not desk.gate.active and not desk.gate.queue
    assert isinstance(desk.ask(), Decision), "engines queue again"
    request = Request(kind=Kind.COMPLETIONS, model="m", tokens=prompt(64, 0))
    assert desk.router.explain(request, desk.now).admission is None
    for slot in (0, 1):
        desk.pool.set_state(slot, ReplicaState.EJECTED)
    desk.pass_s(1.0)
    assert not desk.gate.active
    for slot in (0, 1):
        desk.pool.set_state(slot, ReplicaState.READY)
    reloaded(desk, enabled=True)
    desk.pass_s(0.1)
    assert desk.gate.active and isinstance(desk.ask(), Waiting)
    for each in list(desk.sent):
        desk.first_token(each)
        desk.close(each)
    desk.pass_s(0.1)
    desk.close(desk.sent[-1])
    assert desk.router.open_tickets == 0 and not desk.gate.queue


def test_switched_on_in_a_running_router() -> None:
    desk = Desk(enabled=True)
    off = msgspec.structs.replace(desk.config, admission=Admission())
    router = type(desk.router)(off)
    assert router.lanes["default"].gate is None
    router.reload(desk.config, 1.0)
    gate = router.lanes["default"].gate
    assert gate is not None and gate.active
    router.maintain(1.1)
    assert not gate.active


def test_sessions_are_let_in_when_their_bound_goes() -> None:
    desk = held()
    assert isinstance(desk.ask(20_000), Waiting)
    reloaded(desk, working_set=0.0)
    assert isinstance(desk.told[desk.number], Decision)
    assert not desk.gate.holds_sessions


# What explain says


def held() -> Desk:
    """A pool whose live sessions lose their contexts, with a request under way."""
    desk = Desk(replicas=1)
    desk.pass_s(0.1)
    load = LoadSnapshot(taken_at=0.0, block_size=BLOCK, num_blocks=CAPACITY // BLOCK)
    desk.pool.update_load(0, load)
    talking(desk, sessions=12, turns=40, tokens=20_000)
    assert desk.gate.holds_sessions
    under_way = desk.ask(20_000, first=0)
    assert isinstance(under_way, Decision)
    desk.first_token(under_way)
    return desk


def test_a_replica_that_stands_still_takes_a_session_whatever_its_memory() -> None:
    desk = held()
    assert isinstance(desk.ask(20_000), Waiting)
    assert not outlook(desk).idle
    desk.close(desk.sent[-1])
    desk.router.release(desk.now)
    assert isinstance(desk.told[desk.number], Decision)
    assert isinstance(desk.ask(20_000), Waiting), "one at a time"


def test_below_saturation_it_goes() -> None:
    desk = started()
    found = outlook(desk)
    assert (found.result, found.reason) == ("go", "below_saturation")
    assert (found.replicas_ready, found.replicas_with_room, found.position) == (2, 2, 0)


def test_the_place_among_those_who_wait() -> None:
    desk = Desk(tenant="header", weights={"big": 3.0})
    desk.pass_s(0.1)
    desk.saturate()
    for tokens in (1000, 2000, 40_000):
        assert isinstance(desk.ask(tokens, tenant="big"), Waiting)
    for _ in range(5):
        assert isinstance(desk.ask(tenant="small"), Waiting)
    before = desk.gate.queue, list(desk.gate.queue), dict(desk.gate.queue.accounts)
    found = outlook(desk, 20_000, tenant="big")
    assert (found.result, found.reason, found.code) == ("wait", "room", "")
    assert found.position == 4, "two of its own with less work, and one of the other a turn"
    assert outlook(desk, 20_000, tenant="small").position == 9, "behind five, and three of the big"
    assert outlook(desk, 20_000, tenant="new").position == 5
    assert (found.waiting, found.tenant_waiting, found.tenant_weight) == (8, 3, 3.0)
    assert found.replicas_with_room == 0 and found.longest_wait_s == 30.0
    assert (desk.gate.queue, list(desk.gate.queue), dict(desk.gate.queue.accounts)) == before


def test_a_deadline_that_is_too_near() -> None:
    desk = started()
    desk.saturate()
    assert outlook(desk, wait_s=0.0).in_time is False
    assert outlook(desk, wait_s=5.0).in_time is True, "nothing says that it will not"
    for _ in range(60):
        assert isinstance(desk.ask(), Waiting)
    for each in list(desk.sent)[:2]:
        desk.first_token(each)
    assert desk.gate.pace > 0.0
    late = outlook(desk, 60_000, wait_s=5.0)
    assert late.expected_wait_s is not None and late.expected_wait_s > 5.0 and not late.in_time


@pytest.mark.parametrize(
    ("settings", "fields", "code"),
    [
        ({"queue_requests": 1}, {}, "queue_full"),
        ({}, {"priority": 2}, "low_priority_shed"),
    ],
)
def test_refusals(settings: dict[str, Any], fields: dict[str, Any], code: str) -> None:
    desk = Desk(**settings)
    desk.pass_s(0.1)
    desk.saturate()
    assert isinstance(desk.ask(), Waiting)
    found = outlook(desk, **fields)
    assert (found.result, found.code) == ("refuse", code)
    with pytest.raises(NoReplica) as refused:
        desk.ask(**fields)
    assert refused.value.code == code


def test_the_memory_of_a_session() -> None:
    desk = held()
    new, known = outlook(desk, 20_000), outlook(desk, 20_000 + BLOCK * 50, first=0)
    assert (new.result, new.reason, new.opens_session) == ("wait", "memory", True)
    assert new.wanted_tokens == new.live_tokens + 20_000 > new.allowed_tokens == CAPACITY
    assert new.holds_sessions and new.lost_share > 0.05
    assert (known.result, known.opens_session) == ("go", False)
    assert known.new_tokens < 2000
    assert isinstance(desk.ask(20_000), Waiting)
    assert isinstance(desk.ask(20_000 + BLOCK * 50, first=0), Decision)


def test_nobody_ready() -> None:
    desk = Desk(joining=True)
    found = outlook(desk)
    assert (found.result, found.reason, found.longest_wait_s) == ("wait", "nobody_ready", 10.0)
    reloaded(desk, room_s=0.0)
    assert outlook(desk).result == "go"
