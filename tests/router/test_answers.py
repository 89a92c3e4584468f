"""What an answer closes its ticket with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.core.test_sse import body_of, event
from warmlane.router.answers import Answer
from warmlane.router.types import Kind, Outcome


def read(kind: Kind, body: bytes, stream: bool = True, **options: Any) -> Answer:
    answer = Answer(kind, stream, **options)
    answer.feed(body)
    return answer


def test_outcome_of_a_recorded_stream() -> None:
    answer = read(Kind.CHAT, body_of("chat_stream_usage"))
    assert answer.outcome("ok") == Outcome(
        status="ok",
        prompt_tokens=19,
        cached_tokens=0,
        output_tokens=6,
        text=b"aincersershoulaincaitstainc",
        events=8,
    )
    assert answer.done and answer.decided and answer.first_token
    assert (answer.finish_reason, answer.events) == ("length", 8)
    assert answer.outcome("cancelled").status == "cancelled"


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("chat", Kind.CHAT, b"aincersershoulaincaitstainc"),
        ("completions", Kind.COMPLETIONS, b" purdang vunstoul ust song song"),
        ("messages_anthropic", Kind.MESSAGES, b"fawcand gungoundalfainglit vourchai"),
        ("responses", Kind.RESPONSES, b" maist shitgandpotengsheand dort"),
    ],
)
def test_outcome_of_recorded_whole_answers(name: str, kind: Kind, text: bytes) -> None:
    outcome = read(kind, body_of(name), stream=False).outcome("ok")
    assert (outcome.text, outcome.output_tokens, outcome.status) == (text, 6, "ok")
    assert outcome.prompt_tokens in (15, 19)


def test_an_error_inside_a_stream_with_status_200() -> None:
    answer = read(Kind.COMPLETIONS, body_of("engine_kill_tail"))
    assert answer.error and answer.done
    assert answer.outcome("ok").status == "error"
    assert read(Kind.CHAT, body_of("err_bad_json"), stream=False).outcome("ok").status == "error"


def test_an_abort_with_and_without_a_token() -> None:
    late = read(Kind.COMPLETIONS, body_of("sigterm_tail"))
    assert not late.abort_without_token and late.outcome("ok").status == "aborted"
    body = json.dumps({"choices": [{"text": "", "finish_reason": "abort"}]}).encode()
    early = read(Kind.COMPLETIONS, body, stream=False)
    assert early.abort_without_token and early.decided and not early.first_token
    assert early.outcome("ok").status == "aborted"


def test_kinds_that_generate_nothing_keep_no_text() -> None:
    body = event(choices=[{"text": "abc"}])
    assert read(Kind.OTHER, body).outcome("ok").text == b""
    assert read(Kind.CHAT, body, text_bytes=2).outcome("ok").text == b"ab"
    body = json.dumps({"data": [{"embedding": [1.5]}], "usage": {"prompt_tokens": 4}}).encode()
    answer = read(Kind.EMBEDDINGS, body, stream=False)
    assert answer.first_token and answer.outcome("ok").prompt_tokens == 4
