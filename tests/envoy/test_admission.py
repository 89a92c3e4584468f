"""Requests past saturation at the endpoint picker: the stream waits, and ends as it should."""

from __future__ import annotations

import json
from time import monotonic

import msgspec
import pytest

from tests.envoy import gateway as envoy
from tests.envoy.gateway import Answer
from tests.envoy.talk import Talk as Stream
from warmlane.envoy.picker import Picker
from warmlane.router.admission import Gate, described
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.types import ReplicaState

REPLICAS = ["http://10.0.0.1:8000"]
BODY = envoy.CHAT % (b"x" * 4000)


class Talk(Stream):
    """One that asks for a chat completion."""

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

    def follow(self, **changes: object) -> None:
        """As a reload of the config file with other settings of admission."""
        admission = msgspec.structs.replace(self.router.config.admission, **changes)
        config = msgspec.structs.replace(self.router.config, admission=admission)
        self.router.reload(config, monotonic())
        self.picker.follow(config)

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


def test_a_reload_lets_those_go_who_have_room_now() -> None:
    desk = Desk()
    talk = desk.talk()
    assert talk.ask() == [] and len(desk.gate.queue) == 1
    desk.follow(enabled=False)
    assert talk.hear()[0].endpoint == "10.0.0.1:8000"
    late = desk.talk()
    assert late.ask()[0].endpoint == "10.0.0.1:8000"
    desk.follow(enabled=True)
    desk.router.maintain(monotonic())
    waits = desk.talk()
    assert waits.ask() == [] and len(desk.gate.queue) == 1
    desk.follow(unstarted=20, backlog_s=100.0)
    assert waits.hear()[0].endpoint == "10.0.0.1:8000"
    for each in (talk, late, waits):
        each.say(envoy.response_headers(200), envoy.response_body(b"{}"))
        each.session.closed()
    desk.make_room()
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


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        ({"tenant": "api-key"}, "authorization"),
        ({"tenant": "api-key"}, "x_api_key"),
        ({"tenant": "header"}, "x_llm_d_inference_fairness_id"),
        ({"tenant": "header", "tenant_headers": ["X-Team"]}, "x_team"),
    ],
)
def test_tenants_are_told_apart_as_by_the_proxy(
    settings: dict[str, object], header: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    desk = Desk(**settings)
    talks = [desk.talk() for _ in range(4)]
    for talk, who in zip(talks, ("Bearer ann", "Bearer ann", "Bearer ann", "bob"), strict=True):
        assert talk.ask(**{header: who}) == []
    waiting = {name: each.waiting for name, each in desk.gate.queue.accounts.items()}
    assert sorted(count for count in waiting.values() if count) == [1, 3]
    if settings["tenant"] == "api-key":
        told = f"{waiting} {described(desk.gate, 0.0)} {desk.router.metrics.counts} {caplog.text}"
        assert "ann" not in told and "bob" not in told
    desk.make_room()
    gone = [bool(talk.hear()) for talk in talks]
    assert gone[0] and gone[3], "each tenant's first goes before anybody's third"
    for talk in talks:
        talk.session.closed()
    desk.clean()


def test_a_longest_wait_that_an_envoy_in_front_told() -> None:
    desk = Desk()
    talk = desk.talk()
    assert talk.ask(x_envoy_expected_rq_timeout_ms="0") == []
    desk.router.maintain(monotonic() + 0.01)
    assert talk.hear()[0].status == 429
    talk.session.closed()
    desk.make_room()
    desk.clean()


def test_a_reload_tells_which_headers_count() -> None:
    desk = Desk()
    for tenant, kept in (("api-key", True), ("none", False)):
        settings = {"enabled": True, "tenant": tenant}
        desk.picker.follow(from_data({"pools": [{"replicas": REPLICAS}], "admission": settings}))
        talk = desk.talk()
        talk.session.receive(envoy.request_headers(headers={**envoy.JSON, "authorization": "x"}))
        head = talk.session._request_head
        assert head is not None and (b"authorization" in head.headers) is kept
        talk.session.closed()
    desk.picker.follow(from_data({"pools": [{"replicas": REPLICAS}]}))
    assert desk.picker.wanted is None
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
