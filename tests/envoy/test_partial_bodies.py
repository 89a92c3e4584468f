"""Bodies of which the picker sees the start alone: decided, renamed and counted by that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.envoy import gateway as envoy
from tests.envoy.gateway import Answer
from tests.envoy.talk import Talk
from tests.envoy.test_session import ENDPOINTS, Make, make
from warmlane.envoy.proto.messages import ProcessingResponse
from warmlane.router.types import ModelList

__all__ = ["make"]

LONG = " ".join(f"word{number}" for number in range(6000))  # 52 KB


def chat(text: str, **more: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "fake", "messages": messages, **more}).encode()


def lengthy(body: bytes) -> dict[str, str]:
    return envoy.JSON | {"content-length": str(len(body))}


def streamed(talk: Talk, body: bytes, size: int = 8000, **more: Any) -> list[Answer]:
    """The answers to a STREAMED body that does not wait for the headers' answer."""
    asked = envoy.request_headers(envoy.STREAMED, early=True, headers=lengthy(body), **more)
    answers = talk.say(asked)
    for at in range(0, len(body), size):
        piece = body[at : at + size]
        answers += talk.say(envoy.request_body(piece, end=at + size >= len(body)))
    return answers


def partial(talk: Talk, part: bytes, body: bytes, **more: Any) -> list[Answer]:
    """The answers to a BUFFERED_PARTIAL body of which the gateway buffers the first part."""
    asked = envoy.request_headers(envoy.BUFFERED_PARTIAL, headers=lengthy(body), **more)
    return talk.say(asked, envoy.request_body(part, end=False))


def test_a_long_streamed_body_is_decided_by_its_start(make: Make) -> None:
    picker = make()
    ledger = picker.router.pools["default"].ledger
    chosen = []
    for number in range(8):
        talk = Talk(picker)
        body = chat(f"{number} {LONG}")
        head, *chunks = streamed(talk, body)
        assert len(chunks) == -(-len(body) // 8000)
        assert not any(chunk.common.HasField("body_mutation") for chunk in chunks)
        chosen.append(head.endpoint)
        tokens = sum(ledger.prefill_tokens[:3])
        assert len(body) / 5 < tokens <= len(body) / 3, "all of the body is work, not its start"
        talk.end()
    assert set(chosen) == ENDPOINTS
    for number in (5, 1, 7, 3, 0, 2, 6, 4):
        talk = Talk(picker)
        head, *_ = streamed(talk, chat(f"{number} {LONG} and more"))
        assert head.endpoint == chosen[number], "the same beginning goes where it went"
        held = ledger.prefill_tokens[list(_endpoints(picker)).index(head.endpoint)]
        assert held < len(LONG) / 4 - 3000, "what is held is no work"
        talk.end()
    assert picker.router.open_tickets == 0


def _endpoints(picker: Any) -> list[str]:
    return [replica.endpoint for replica in picker.router.pools["default"]]


def test_how_much_is_awaited_is_by_config(make: Make) -> None:
    talk = Talk(make(streamed_bytes=30_000))
    body = chat(LONG)
    talk.say(envoy.request_headers(envoy.STREAMED, early=True))
    assert talk.say(*[envoy.request_body(body[:10_000], end=False)] * 3) == []
    assert len(talk.say(envoy.request_body(body[:1], end=False))) == 5
    talk.end()


def test_a_model_in_the_start_is_rewritten(make: Make) -> None:
    picker = make(models=[{"name": "fake", "pool": "default", "model": "a-much-longer-name"}])
    body = chat(LONG, stream=True)
    wanted = body.replace(b'"fake"', b'"a-much-longer-name"')
    talk = Talk(picker)
    head, first, *rest = streamed(talk, body)
    assert head.set["content-length"] == str(len(wanted))
    new = first.common.body_mutation.body
    assert new == wanted[: len(new)]
    empty = [each.common.body_mutation for each in rest if each.common.HasField("body_mutation")]
    assert all(each.WhichOneof("mutation") == "body" and each.body == b"" for each in empty)
    assert len(new) - len(b"a-much-longer-name") + len(b"fake") == 8000 * (1 + len(empty))
    talk.end()

    talk = Talk(picker)
    _, answer = partial(talk, body[:20_000], body)
    assert answer.removed == ["content-length"] and "content-length" not in answer.set
    new = answer.common.body_mutation.body
    assert new == wanted[: len(new)] and len(new) == 20_000 + len(wanted) - len(body)
    talk.end()


def test_a_model_behind_the_start_cannot_be_rewritten(make: Make) -> None:
    picker = make()
    fields = {"messages": [{"role": "user", "content": LONG}], "model": "fake"}
    body = json.dumps(fields).encode()
    talk = Talk(picker)
    headers = lengthy(body) | {"x-llm-d-model-name-rewrite": "other"}
    asked = envoy.request_headers(envoy.BUFFERED_PARTIAL, headers=headers)
    _, answer = talk.say(asked, envoy.request_body(body[:20_000], end=False))
    assert answer.endpoint and not answer.common.HasField("body_mutation")
    counted = picker.metrics.counts["warmlane_fallbacks_total"]
    assert counted == {("default", "model_not_rewritten"): 1}
    talk.end()


@pytest.mark.parametrize("start", [LONG.encode(), b"\0\1\2" * 7000, b"[" * 20_000])
def test_a_start_that_is_no_json_is_routed_by_load(make: Make, start: bytes) -> None:
    talk = Talk(make())
    _, answer = partial(talk, start, start + start)
    assert answer.endpoint in ENDPOINTS
    talk.end()


def test_what_is_forbidden_in_the_start_is_refused(make: Make) -> None:
    for rule in ("reject", "strip"):  # it could go on beyond the start
        talk = Talk(make(transfer_params=rule))
        body = b'{"model":"fake","kv_transfer_params":{"a":1},"prompt":"' + LONG.encode() + b'"}'
        _, refusal = partial(talk, body[:20_000], body)
        assert refusal.status == 400
        talk.end()


def test_a_partly_buffered_body_that_is_whole_is_decided_as_such(make: Make) -> None:
    talk = Talk(make(models=[{"name": "fake", "pool": "default", "model": "x"}]))
    body = chat("hello")
    asked = envoy.request_headers(envoy.BUFFERED_PARTIAL)
    _, answer = talk.say(asked, envoy.request_body(body, end=False))  # trailers follow
    assert answer.common.body_mutation.body == body.replace(b'"fake"', b'"x"')
    [trailers] = talk.say(envoy.request_trailers())
    assert trailers.kind == "request_trailers"
    talk.end()


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("mode", [envoy.NONE, envoy.STREAMED])
def test_a_gateway_is_asked_for_the_body(make: Make, mode: int, level: int) -> None:
    talk = Talk(make(ask_for_body=True, response_level=level))
    [head] = talk.say(envoy.request_headers(mode, response_mode=envoy.STREAMED))
    asked = ProcessingResponse.FromString(head.raw).mode_override
    assert not head.set
    assert (asked.request_body_mode, asked.response_body_mode) == (3, envoy.STREAMED)
    assert asked.response_header_mode == asked.response_trailer_mode == (2 if level == 0 else 1)
    [answer] = talk.say(envoy.request_body(chat("hello")))
    assert answer.kind == "request_body" and answer.endpoint in ENDPOINTS
    talk.end()


@pytest.mark.parametrize(
    "how",
    [
        {"end": True},
        {"response_mode": envoy.FULL_DUPLEX},
        {"mode": envoy.FULL_DUPLEX},
        {"mode": envoy.STREAMED, "early": True},
        {"observe": True},
    ],
)
def test_a_gateway_is_not_asked_where_it_does_not_heed(make: Make, how: dict[str, Any]) -> None:
    talk = Talk(make(ask_for_body=True))
    options = {"mode": envoy.NONE, "response_mode": envoy.NONE, **how}
    for answer in talk.say(envoy.request_headers(**options)):
        assert not ProcessingResponse.FromString(answer.raw).HasField("mode_override")
    talk.end()


def test_the_gateway_tells_the_model_of_a_body_that_is_not_seen(make: Make) -> None:
    pools = [
        {"name": "a", "replicas": ["http://10.0.0.1:8000"]},
        {"name": "b", "replicas": ["http://10.0.0.2:8000"]},
    ]
    picker = make(pools=pools)
    for name in ("a", "b"):
        picker.router.pools[name].set_models(0, ModelList(models=frozenset({name})))
    for mode, model in ((envoy.NONE, "b"), (envoy.STREAMED, "a")):
        talk = Talk(picker)
        headers = {"x-ai-eg-model": model}
        [head] = talk.say(envoy.request_headers(mode, headers=headers))
        assert head.endpoint == f"10.0.0.{'ab'.index(model) + 1}:8000"
        talk.end()
    talk = Talk(picker)  # the body's own word counts where it is seen
    talk.say(envoy.request_headers(headers={"x-ai-eg-model": "b"}))
    head, _ = talk.say(envoy.request_body(chat("hello").replace(b"fake", b"a")))
    assert head.endpoint == "10.0.0.1:8000"
    talk.end()


def test_the_priority_header_counts(make: Make) -> None:
    """vLLM reads it before the body's own, and so do all faces."""
    picker = make()
    talk = Talk(picker)
    talk.say(envoy.request_headers(envoy.BUFFERED, headers=envoy.JSON | {"x-vllm-priority": "-7"}))
    talk.say(envoy.request_body(chat("hello", priority=3)))
    [opened] = picker.router.lanes["default"]._open.values()
    assert opened.request.priority == -7
    talk.end()
