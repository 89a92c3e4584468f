"""The answer reader on recorded answers, on every API's documented shapes, in every cutting."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import bodies
from tests.core import twin_sse as twin
from warmlane._core import sse

GOLDEN = Path(__file__).parents[1] / "golden" / "answers"
FIELDS = (
    *("first_token", "finish_reason", "error", "done", "prompt_tokens", "cached_tokens"),
    *("output_tokens", "text", "documents"),
)


def body_of(name: str) -> bytes:
    """The body of a recorded response, chunk framing removed."""
    path = next(GOLDEN.glob(f"{name}.*"))
    raw = gzip.decompress(path.read_bytes())
    if path.name.endswith(".sse.gz"):
        return raw
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head:
        return rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


RECORDED = sorted(path.name.split(".")[0] for path in GOLDEN.glob("*.gz"))


def findings(scan: sse.AnswerScan) -> dict[str, Any]:
    return {name: getattr(scan, name) for name in (*FIELDS, "streaming", "decided")}


def fed(body: bytes, cuts: list[int], **options: int) -> sse.AnswerScan:
    scan = sse.AnswerScan(**options)
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        scan.feed(body[start:end])
    return scan


def assert_as_twin(scan: sse.AnswerScan, body: bytes, **options: int) -> None:
    expected = twin.read(body, **options)
    for name in FIELDS:
        assert getattr(scan, name) == getattr(expected, name), (name, body)


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_answers_whole_and_byte_by_byte(name: str) -> None:
    body = body_of(name)
    assert body
    assert_as_twin(fed(body, []), body)
    assert_as_twin(fed(body, list(range(1, len(body)))), body)
    for cut in range(0, len(body), 7):
        assert findings(fed(body, [cut])) == findings(fed(body, []))


def test_what_the_recordings_say() -> None:
    stream = fed(body_of("chat_stream_usage"), [])
    assert (stream.text, stream.finish_reason) == (b"aincersershoulaincaitstainc", "length")
    assert (stream.prompt_tokens, stream.cached_tokens, stream.output_tokens) == (19, 0, 6)
    assert stream.done and stream.streaming and not stream.error
    whole = fed(body_of("chat"), [])
    assert (whole.text, whole.done, whole.streaming) == (stream.text, True, False)
    two = fed(body_of("chat_n2_stream"), [])
    assert two.text.endswith(b"ix") and b"plousplout" not in two.text
    killed = fed(body_of("engine_kill_tail"), [])
    assert killed.error and killed.done and killed.first_token
    stopped = fed(body_of("sigterm_tail"), [])
    assert stopped.finish_reason == "abort" and not stopped.abort_without_token
    refused = fed(body_of("overload_stream"), [])
    assert refused.error and not refused.first_token and refused.decided
    cached = fed(body_of("chat_stream_cached"), [])
    assert cached.cached_tokens is not None and cached.cached_tokens > 0


def test_the_first_token_is_seen_with_its_event_and_not_before() -> None:
    scan = sse.AnswerScan()
    role = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    scan.feed(role)
    assert not scan.first_token and not scan.decided
    token = event(choices=[{"index": 0, "delta": {"content": "x"}, "finish_reason": None}])
    scan.feed(token[:-20])
    seen = findings(scan)
    assert seen["first_token"] and seen["decided"] and seen["finish_reason"] == ""


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0}]},
        {"refusal": "no"},
        {"function_call": {"name": "f"}},
        {"audio": {"id": "a"}},
    ],
)
def test_other_output_is_a_token_but_no_text(delta: dict[str, Any]) -> None:
    scan = fed(event(choices=[{"index": 0, "delta": delta}]), [])
    assert scan.first_token and scan.text == b""
    empty = {name: type(inner)() for name, inner in delta.items() if not isinstance(inner, dict)}
    assert not fed(event(choices=[{"index": 0, "delta": empty}]), []).first_token


@pytest.mark.parametrize("stream", [True, False])
def test_abort_without_a_token(stream: bool) -> None:
    choice = {"index": 0, "text": "", "finish_reason": "abort"}
    body = event(choices=[choice]) if stream else json.dumps({"choices": [choice]}).encode()
    scan = fed(body, [])
    assert scan.abort_without_token and scan.decided
    choice["text"] = "x"
    body = event(choices=[choice]) if stream else json.dumps({"choices": [choice]}).encode()
    assert not fed(body, []).abort_without_token


def test_responses_stream() -> None:
    body = (
        b"event: response.created\n"
        + event(type="response.created", response={"status": "in_progress", "usage": None})
        + event(delta="thinking", type="response.reasoning_text.delta")
        + event(delta="Hel", sequence_number=3, type="response.output_text.delta")
        + event(type="response.output_text.delta", delta="lo")
        + event(delta='{"a":', type="response.function_call_arguments.delta")
        + event(type="response.output_text.done", text="Hello")
        + event(
            response={
                "error": None,
                "output": [{"content": [{"type": "output_text", "text": "Hello"}]}],
                "status": "completed",
                "usage": {
                    "input_tokens": 9,
                    "input_tokens_details": {"cached_tokens": 4},
                    "output_tokens": 2,
                },
            },
            type="response.completed",
        )
    )
    scan = fed(body, [])
    assert (scan.text, scan.finish_reason, scan.done) == (b"Hello", "completed", True)
    assert (scan.prompt_tokens, scan.cached_tokens, scan.output_tokens) == (9, 4, 2)
    assert_as_twin(scan, body)
    failed = event(type="response.failed", response={"status": "failed", "error": {"code": "x"}})
    scan = fed(failed, [])
    assert scan.error and scan.done and scan.finish_reason == "failed"


def test_anthropic_stream() -> None:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 1}
    body = (
        b"event: message_start\n"
        + event(type="message_start", message={"content": [], "usage": usage, "stop_reason": None})
        + b"event: ping\n"
        + event(type="ping")
        + event(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
        + event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "Hé"})
        + event(type="content_block_delta", index=1, delta={"partial_json": '{"a"'})
        + event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
        + event(type="message_stop")
    )
    scan = fed(body, [])
    assert (scan.text, scan.finish_reason, scan.done) == ("Hé".encode(), "end_turn", True)
    assert (scan.prompt_tokens, scan.cached_tokens, scan.output_tokens) == (13, 7, 3)
    assert_as_twin(scan, body)
    scan = fed(b"event: error\n" + event(type="error", error={"type": "overloaded_error"}), [])
    assert scan.error and scan.done


def test_embeddings_and_errors_as_json() -> None:
    body = json.dumps(
        {"data": [{"embedding": [0.25] * 3000}], "usage": {"prompt_tokens": 8}}
    ).encode()
    scan = fed(body, [len(body) // 2])
    assert scan.first_token and scan.done and scan.prompt_tokens == 8
    assert fed(b'{"error":"Unauthorized"}', []).error
    assert not fed(b'{"error":null}', []).error
    for other in (b"<html>", b"[1,2]", b""):
        scan = fed(other, [])
        assert not (scan.decided or scan.streaming)


@pytest.mark.parametrize("ending", ["\n\n", "\r\n\r\n", "\r\r"])
@pytest.mark.parametrize("space", ["", " ", "  "])
def test_line_endings_comments_and_other_fields(ending: str, space: str) -> None:
    line = ending[: len(ending) // 2]
    lines = [
        ":comment",
        "id: 5",
        "retry: 10",
        "data",
        f'data:{space}{{"choices":[{{"text":"a"}}]}}',
    ]
    body = (line.join(lines) + ending + f"data:{space}[DONE]" + ending).encode()
    for cut in range(len(body)):
        scan = fed(body, [cut])
        assert (scan.text, scan.done, scan.documents) == (b"a", True, 1)


def test_an_event_over_several_data_lines_and_one_without_its_empty_line() -> None:
    body = b'data: {"choices":\ndata: [{"text":"a"}]}\ndata: {"choices":[{"text":"b"}]}\n\n'
    assert fed(body, []).text == b"ab"


def test_a_damaged_event_is_skipped() -> None:
    good = event(choices=[{"text": "x"}])
    for bad in (
        b'data: {"\n\n',
        b'data: {"choices":[{"text":"a\n\n',
        b"data: {]}\n\n",
        b"data: [x]\n\n",
        b"\n\n\n",
    ):
        for cut in range(len(bad)):
            assert fed(bad + good, [cut]).text.endswith(b"x")
    assert not fed(b"data: [DONE]x\n\n", []).done
    assert not fed(b"data: [DON\n\n", []).done


def test_text_is_bounded_and_takes_back_only_what_does_not_count() -> None:
    def choice(index: int, text: str) -> bytes:
        return event(choices=[{"text": text, "index": index}])

    body = choice(1, "y" * 50) + choice(0, "a" * 7) + choice(1, "z" * 9) + choice(0, "bcdefgh")
    assert fed(body, [], text_bytes=10).text == b"aaaaaaabcd"
    assert fed(body, [], text_bytes=0).text == b""
    assert fed(b'{"choices":[{"text":"' + b"q" * 300_000, []).text == b"q" * sse.TEXT_BYTES
    with pytest.raises(ValueError, match="text_bytes"):
        sse.AnswerScan(-1)


def test_a_failed_allocation_ends_the_text_and_nothing_else() -> None:
    scan = sse.AnswerScan()
    scan.feed(event(choices=[{"text": "a" * 900}]))
    sse._fail_allocation_after(0)
    scan.feed(event(choices=[{"text": "b" * 900}]))
    scan.feed(event(choices=[{"text": "c", "finish_reason": "stop"}]))
    assert (scan.text, scan.finish_reason) == (b"a" * 900, "stop")


def random_answer(rng: random.Random) -> bytes:
    """A well-formed answer with known members in random places among unknown ones."""
    usage = {
        "prompt_tokens": rng.choice((None, 5)),
        "completion_tokens": 7,
        "prompt_tokens_details": rng.choice((None, {"cached_tokens": 3, "x": [1]})),
    }
    choice = {
        "index": rng.choice((0, 0, 1)),
        "text": bodies.text(rng),
        "logprobs": bodies.anything(rng),
        "delta": {"content": bodies.text(rng), "role": "assistant", "y": bodies.anything(rng)},
        "finish_reason": rng.choice((None, "stop", "length", "abort")),
        "token_ids": rng.choice((None, [], [1, 2])),
    }
    choice.pop(rng.choice(("text", "delta")))
    part = {"type": rng.choice(("text", "output_text", "reasoning_text")), "text": bodies.text(rng)}
    fields: list[tuple[str, Any]] = [
        ("id", bodies.text(rng)),
        ("choices", [tuple(rng.sample(list(choice.items()), rng.randint(0, 5)))]),
        ("usage", rng.choice((None, usage))),
        (
            "delta",
            rng.choice((bodies.text(rng), {"text": bodies.text(rng), "z": [bodies.text(rng)]})),
        ),
        ("type", rng.choice(("response.output_text.delta", "other", "content_block_delta"))),
        ("output", [{"content": [part], "arguments": bodies.text(rng)}]),
        ("object", bodies.anything(rng)),
        ("error", rng.choice((None, None, {"message": "m"}, "text"))),
        ("status", rng.choice(("in_progress", "completed", "failed"))),
        ("data", rng.choice((None, [], [[1.5, 2]]))),
    ]
    # One source of text in a document, as in every API: their order would decide otherwise.
    source = rng.choice(("choices", "delta", "output"))
    others = {"choices", "delta", "output"} - {source} | (
        {"status"} if source == "choices" else set()
    )
    fields = [item for item in fields if item[0] not in others]
    chosen = rng.sample(fields, rng.randint(0, len(fields)))
    return bodies.encode(rng, tuple(chosen), False).encode("utf-8", "surrogatepass")


def random_body(rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return random_answer(rng)
    parts = [b": hello\n\n"]
    for _ in range(rng.randrange(5)):
        parts.append(b"data: " + random_answer(rng).translate(None, b"\r\n") + b"\n\n")
    return b"".join(parts) + b"data: [DONE]\n\n"


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_random_answers_in_random_cuts(seed: int, data: st.DataObject) -> None:
    body = random_body(random.Random(seed))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    limit = data.draw(st.sampled_from((5, 40, 1 << 18)))
    assert_as_twin(fed(body, cuts, text_bytes=limit), body, text_bytes=limit)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_damaged_answers_read_the_same_in_every_cutting(seed: int, data: st.DataObject) -> None:
    body = bytearray(random_body(random.Random(seed)))
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    whole, each = fed(bytes(body), []), fed(bytes(body), list(range(1, len(body))))
    assert findings(whole) == findings(each)


def test_any_bytes_like_chunk() -> None:
    body = event(choices=[{"text": "a"}])
    scan = sse.AnswerScan()
    scan.feed(bytearray(body))
    scan.feed(memoryview(body))
    assert scan.text == b"aa"
    with pytest.raises(TypeError):
        scan.feed("text")  # type: ignore[arg-type]
