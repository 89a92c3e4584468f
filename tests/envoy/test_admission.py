"""Requests past saturation at the endpoint picker: the stream waits, and ends as it should."""

from __future__ import annotations

import json
from time import monotonic

import pytest

from tests.envoy import gateway as envoy
from tests.envoy.gateway import Answer
from warmlane.envoy.picker import Picker
from warmlane.envoy.session import Session
from warmlane.router.admission import Gate
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.types import ReplicaState

REPLICAS = ["http://10.0.0.1:8000"]
BODY = envoy.CHAT % (b"x" * 4000)


class Talk:
    """One stream, and how often it asked to be written."""

    def __init__(self, picker: Picker) -> None:
        self.woken = 0
        self.session = Session(picker, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def say(self, *messages: bytes) -> list[Answer]:
        for message in messages:
            self.session.receive(message)
        return self.hear()

    def hear(self) -> list[Answer]:
        return [Answer(raw) for raw in self.session.take()]

    def ask(self, **headers: str) -> list[Answer]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        head = envoy.request_headers(headers={**envoy.JSON, **named})
        return self.say(head, envoy.request_body(BODY))


class Desk:
    """A picker whose only replica is full."""

    def __init__(self, **admission: object) -> None:
        settings = {"enabled": True, "backlog_s": 0.001, "unstarted": 1, **admission}
        config = from_data({"pools": [{"replicas": REPLICAS}], "admission": settings})
        self.router = Router(config)
        self.picker = Picker(self.router, config)
        gate = self.router.lanes["default"].gate
        assert gate is not None
        self.gate: Gate = gate
        self.router.maintain(monotonic())
        self.first = [self.talk() for _ in range(2)]
        for each in self.first:
            assert each.ask()[0].endpoint == "10.0.0.1:8000"
        self.router.maintain(monotonic())
        assert gate.active

    def talk(self) -> Talk:
        return Talk(self.picker)

    def make_room(self) -> None:
        """The answers to the first two come and end."""
        for each in self.first:
            each.say(envoy.response_headers(200), envoy.response_body(b"{}"))
            each.session.closed()
        self.router.release(monotonic())

    def clean(self) -> None:
        assert not self.gate.queue and self.router.open_tickets == 0
        assert self.picker.open == 0 and self.picker.buffered == 0


def test_the_choice_is_answered_when_there_is_room() -> None:
    desk = Desk()
    talk = desk.talk()
    assert talk.ask() == [] and len(desk.gate.queue) == 1
    assert talk.say() == []
    desk.make_room()
    assert talk.woken == 1
    answers = talk.hear()
    assert answers[0].endpoint == "10.0.0.1:8000"
    assert envoy.joined(answers[1:]) == BODY
    talk.say(envoy.response_headers(200), envoy.response_body(b"{}"))
    talk.session.closed()
    desk.clean()


def test_a_stream_that_goes_leaves_the_queue() -> None:
    desk = Desk()
    talk = desk.talk()
    assert talk.ask() == []
    talk.session.closed()
    assert not desk.gate.queue
    desk.make_room()
    assert talk.woken == 0
    desk.clean()


@pytest.mark.parametrize(
    ("settings", "headers", "code"),
    [
        ({"wait_s": 0.001}, {}, "queue_timeout"),
        ({}, {"x_warmlane_deadline_ms": "0"}, "queue_timeout"),
        ({"queue_bytes": 10}, {}, "queue_full"),
    ],
)
def test_refusals_are_429_in_the_words_of_both_sides(
    settings: dict[str, object], headers: dict[str, str], code: str
) -> None:
    desk = Desk(**settings)
    talk = desk.talk()
    answers = talk.ask(**headers)
    if not answers:
        desk.router.maintain(monotonic() + 0.01)
        assert talk.woken == 1
        answers = talk.hear()
    assert answers[0].status == 429
    said = answers[0].message.immediate_response
    assert json.loads(said.body)["error"]["code"] == code
    names = {each.header.key: each.header.raw_value for each in said.headers.set_headers}
    assert names["x-llm-d-request-dropped-reason"] == b"rejected-saturated"
    assert int(names["retry-after"]) >= 1
    talk.session.closed()
    desk.make_room()
    desk.clean()


def test_it_waits_for_a_replica_to_be_ready_and_then_hears_503() -> None:
    desk = Desk(room_s=5.0)
    pool = desk.router.pools["default"]
    pool.set_state(0, ReplicaState.EJECTED, "test")
    stays, leaves = desk.talk(), desk.talk()
    assert stays.ask() == [] and leaves.ask() == []
    desk.make_room()
    assert stays.woken == 0
    desk.router.maintain(monotonic() + 5.1)
    assert [each.hear()[0].status for each in (stays, leaves)] == [503, 503]
    for each in (stays, leaves):
        each.session.closed()
    desk.clean()
