"""What the picker tells and heeds besides the protocol: by option, and off without it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.envoy import gateway as envoy
from tests.envoy.gateway import Answer
from tests.envoy.talk import Talk
from tests.envoy.test_session import ENDPOINTS, Make, make
from warmlane.envoy.extras import address_of, token_of
from warmlane.envoy.proto.messages import ProcessingResponse
from warmlane.envoy.rename import Rename
from warmlane.router.types import ReplicaState

__all__ = ["make"]

BODY = envoy.CHAT % b"hello there"
NICK = [{"name": "fake", "pool": "default", "model": 'the/engine\'s "own" name'}]
ENGINE = NICK[0]["model"]
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def asked(talk: Talk, body: bytes = BODY, **headers: str) -> list[Answer]:
    return talk.say(envoy.request_headers(headers=envoy.JSON | headers), envoy.request_body(body))


def metadata(answer: Answer) -> dict[str, Any]:
    told = ProcessingResponse.FromString(answer.raw).dynamic_metadata
    return dict(told["envoy.lb"].items()) if "envoy.lb" in told else {}


# The model's name in answers


def renamed(text: bytes, cuts: list[int], engine: str = "m-1", client: str = "nick") -> bytes:
    rename, out, at = Rename(engine, client), b"", 0
    for cut in sorted(cuts):
        out += rename.feed(text[at:cut], False)
        at = cut
    return out + rename.feed(text[at:], True)


@given(st.data())
def test_a_name_is_put_back_wherever_it_is_cut(data: st.DataObject) -> None:
    blank = data.draw(st.sampled_from(["", " ", "\t "]))
    events = [
        f'data: {{"model"{blank}:{blank}"m-1","choices":[{{"text":{json.dumps(word)}}}]}}\n\n'
        for word in data.draw(
            st.lists(st.text() | st.sampled_from(['"model":"m-1"', '"model', 'm-1"']), max_size=4)
        )
    ]
    text = "".join(events).encode("utf-8", "surrogatepass")
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    wanted = text.replace(
        f'"model"{blank}:{blank}"m-1"'.encode(), f'"model"{blank}:{blank}"nick"'.encode()
    )
    assert renamed(text, cuts) == wanted


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_other_bytes_stay(noise: bytes, cuts: list[int]) -> None:
    assert renamed(noise, [cut for cut in cuts if cut <= len(noise)]) == noise


def test_an_event_is_not_held_back() -> None:
    rename = Rename("m-1", "nick")
    event = b'data: {"model":"m-1","choices":[]}\n\n'
    assert rename.feed(event, False) == event.replace(b"m-1", b"nick")
    assert rename.feed(b'data: {"mod', False) == b"data: {"


@pytest.mark.parametrize("mode", [envoy.FULL_DUPLEX, envoy.BUFFERED])
def test_the_answer_names_the_model_that_was_asked_for(make: Make, mode: int) -> None:
    talk = Talk(make(models=NICK, response_level=2))
    talk.say(envoy.request_headers(response_mode=mode))
    talk.say(envoy.request_body(BODY))
    body = json.dumps({"model": ENGINE, "choices": [], "usage": USAGE}).encode()
    cut = random.Random(3).randrange(len(body)) if mode == envoy.FULL_DUPLEX else 0
    length = {"content-length": str(len(body))}
    [head] = talk.say(envoy.response_headers(headers=envoy.JSON | length))
    assert head.removed == ["content-length"]
    answers = talk.say(*([envoy.response_body(body[:cut], end=False)] if cut else []))
    answers += talk.say(envoy.response_body(body[cut:]))
    wanted = body.replace(json.dumps(ENGINE).encode(), b'"fake"')
    if mode == envoy.FULL_DUPLEX:
        assert envoy.joined(answers) == wanted
    else:
        assert answers[0].common.body_mutation.body == wanted
    assert talk.picker.router.open_tickets == 0
    talk.end()


@pytest.mark.parametrize("level", [1, 2])
def test_an_answer_is_not_touched_without_need(make: Make, level: int) -> None:
    talk = Talk(make(models=NICK if level == 1 else [], response_level=level))
    asked(talk)
    body = json.dumps({"model": ENGINE if level == 1 else "fake"}).encode()
    [head] = talk.say(envoy.response_headers())
    assert head.removed == []
    assert envoy.joined(talk.say(envoy.response_body(body))) == body
    talk.end()


# Session tokens


@given(st.binary(max_size=600))
def test_any_token_of_a_client_is_harmless(token: bytes) -> None:
    assert isinstance(address_of(token), str)
    assert address_of(token_of("[fd00::1]:80")) == "[fd00::1]:80"


def test_a_token_leads_back_while_the_replica_is_ready(make: Make) -> None:
    picker = make(session_token=True)
    talk = Talk(picker)
    head, _ = asked(talk)
    [told] = talk.say(envoy.response_headers())
    token = told.set["x-session-token"]
    assert address_of(token.encode()) == head.endpoint
    talk.end()
    for number in range(6):
        talk = Talk(picker)
        again, _ = asked(talk, envoy.CHAT % b"other %d" % number, **{"x-session-token": token})
        assert again.endpoint == head.endpoint
        talk.end()
    pool = picker.router.pools["default"]
    slot = next(each.slot for each in pool if each.endpoint == head.endpoint)
    pool.set_state(slot, ReplicaState.EJECTED, "a test")
    for unusable in (token, "", "no token", token_of("1.2.3.4:5").decode()):
        talk = Talk(picker)
        other, _ = asked(talk, **{"x-session-token": unusable})
        assert other.endpoint in ENDPOINTS - {head.endpoint}
        talk.end()


def test_a_subset_outranks_a_token(make: Make) -> None:
    picker = make(session_token=True)
    talk = Talk(picker)
    token = token_of("10.0.0.1:8000").decode()
    headers = envoy.JSON | {"x-session-token": token}
    talk.say(envoy.request_headers(headers=headers, subset=["10.0.0.2:8000"]))
    head, _ = talk.say(envoy.request_body(BODY))
    assert head.endpoint == "10.0.0.2:8000"
    talk.end()


def test_without_the_option_a_token_means_nothing(make: Make) -> None:
    picker = make()
    chosen = set()
    for number in range(12):
        talk = Talk(picker)
        token = token_of("10.0.0.1:8000").decode()
        head, _ = asked(talk, envoy.CHAT % (b"%d" % number * 50), **{"x-session-token": token})
        chosen.add(head.endpoint)
        [told] = talk.say(envoy.response_headers())
        assert not told.set
        talk.end()
    assert len(chosen) > 1


# Metadata


@pytest.mark.parametrize("mode", [envoy.FULL_DUPLEX, envoy.BUFFERED, envoy.NONE])
def test_scores_of_all_candidates(make: Make, mode: int) -> None:
    talk = Talk(make(endpoint_scores=True))
    answers = talk.say(envoy.request_headers(mode))
    if mode != envoy.NONE:
        answers += talk.say(envoy.request_body(BODY))
    choice = next(answer for answer in answers if answer.set)
    told = metadata(choice)
    assert choice.endpoint == told["x-gateway-destination-endpoint"]
    scores = dict(told["x-gateway-destination-endpoint-scores"].items())
    assert set(scores) == ENDPOINTS
    assert scores[choice.endpoint] == max(scores.values())
    talk.end()


@pytest.mark.parametrize("trailers", [False, True])
def test_the_cost_comes_with_the_end(make: Make, trailers: bool) -> None:
    for option in (True, False):
        talk = Talk(make(request_cost=option, response_level=2))
        asked(talk)
        talk.say(envoy.response_headers())
        body = json.dumps({"model": "fake", "choices": [], "usage": USAGE}).encode()
        answers = talk.say(envoy.response_body(body, end=not trailers))
        if trailers:
            assert metadata(answers[-1]) == {}
            answers = talk.say(envoy.response_trailers())
        told = metadata(answers[-1])
        assert told == ({"x-gateway-inference-request-cost": 10.0} if option else {})
        talk.end()


# Prefer: if-available


def test_a_conditional_request_is_412_until_somebody_has_it(make: Make) -> None:
    picker = make(conditional=True)
    body = envoy.CHAT % (b"a long prompt " * 200)
    talk = Talk(picker)
    [refusal] = asked(talk, body, prefer="If-Available")
    assert refusal.status == 412
    assert picker.router.open_tickets == 0
    talk.end()
    talk = Talk(picker)
    first, *_ = asked(talk, body)
    talk.end()
    talk = Talk(picker)
    again, *_ = asked(talk, body, prefer="if-available")
    assert again.endpoint == first.endpoint
    talk.end()
    talk = Talk(make())
    head, *_ = asked(talk, body, prefer="if-available")
    assert head.endpoint
    talk.end()
