"""The one-pass scan against a full decode."""

from __future__ import annotations

import array
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import bodies
from tests.core import twin_scan as twin
from warmlane._core import scan

FIELDS = (
    *("model", "stream", "max_tokens", "salt", "session", "priority", "prompt", "tokens"),
    *("samples", "reads_cache"),
    "transfer",
)


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def prompt_of(body: bytes, kind: int = scan.CHAT, cap: int = scan.PROMPT_CAP) -> bytes | None:
    found = scan.scan_body(body, kind, cap)
    assert found is not None
    return found.prompt


def assert_same(body: bytes, kind: int, cap: int = scan.PROMPT_CAP) -> None:
    found, expected = scan.scan_body(body, kind, cap), twin.scan(body, kind, cap)
    if found is None or expected is None:
        # Damaged text aside, only an escaped key sends the scan to the full decoder alone.
        names = json.loads(body) if expected else {}
        assert expected is None or any("\\" in json.dumps(name) for name in names)
        return
    for name in FIELDS:
        assert getattr(found, name) == getattr(expected, name), (name, kind, body)


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(range(6)))
def test_scan_and_full_decoder_agree(seed: int, kind: int) -> None:
    rng = random.Random(seed)
    body = bodies.body(rng)
    if twin.scan(body, kind) is None:  # a member twice: valid JSON, and never plain
        assert scan.scan_body(body, kind) is None
    assert_same(body, kind)
    assert_same(body, kind, rng.choice((4, 8, 16, 40, 100, 400)))


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(range(6)))
def test_a_plain_body_is_never_refused(seed: int, kind: int) -> None:
    rng = random.Random(seed)
    fields = dict(item for item in json.loads(bodies.body(rng)).items() if "\\" not in item[0])
    fields = {key: inner for key, inner in fields.items() if json.dumps(key) == f'"{key}"'}
    body = json.dumps(fields).encode()
    assert scan.scan_body(body, kind) is not None
    assert_same(body, kind)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(range(6)))
def test_spelling_and_white_space_do_not_change_the_prompt(seed: int, kind: int) -> None:
    rng = random.Random(seed)
    fields = tuple((name, inner) for name, inner in bodies.fields(rng))
    texts = [bodies.encode(random.Random(n), fields, False) for n in (1, 2)]
    found = [scan.scan_body(raw.encode("utf-8", "surrogatepass"), kind) for raw in texts]
    assert (found[0] is None) == (found[1] is None)
    for name in FIELDS:
        assert getattr(found[0], name, None) == getattr(found[1], name, None)


def test_chat_bytes_as_documented() -> None:
    body = chat(
        messages=[
            {"role": "system", "content": "S"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"content": None, "tool_calls": [{"id": 1}], "role": "assistant", "refusal": "no"},
        ],
        tools=[{"name": "f", "cache_control": {"type": "ephemeral"}}],
    )
    assert prompt_of(body) == (
        b"\xf8[{\xfdname\xfc\xfdf\xfc}]"
        b"\xffsystem\xfeS\xffuser\xfea\xfbb\xffassistant\xf6c[{\xfdid\xfc\xf71}]"
    )


def test_one_text_part_equals_the_bare_string_and_cache_control_does_not_count() -> None:
    bare = chat(messages=[{"role": "user", "content": "abc"}])
    part = {"type": "text", "text": "abc", "cache_control": {"type": "ephemeral"}}
    assert prompt_of(chat(messages=[{"role": "user", "content": [part]}])) == prompt_of(bare)
    responses = json.dumps({"input": "abc"}).encode()
    assert prompt_of(responses, scan.RESPONSES) == prompt_of(bare)
    anthropic = json.dumps(
        {"messages": [{"role": "user", "content": "abc"}], "system": "S"}
    ).encode()
    with_system = [{"role": "system", "content": "S"}, {"role": "user", "content": "abc"}]
    assert prompt_of(anthropic, scan.MESSAGES) == prompt_of(chat(messages=with_system))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_a_longer_conversation_begins_with_the_shorter_one(seed: int, cut: int) -> None:
    rng = random.Random(seed)
    turns = [bodies.message(rng) for _ in range(6)]
    tools = bodies.anything(rng)

    def prompt(count: int) -> bytes | None:
        raw = bodies.encode(
            random.Random(seed), (("messages", turns[:count]), ("tools", tools)), False
        )
        return prompt_of(raw.encode("utf-8", "surrogatepass"))

    shorter, longer = prompt(cut), prompt(6)
    if shorter is not None and longer is not None:
        assert longer.startswith(shorter)


def test_order_of_fields_does_not_matter_with_and_without_a_cap() -> None:
    fields = [
        ("tools", [{"name": "f" * 30}]),
        ("system", "S" * 40),
        ("messages", [{"role": "user", "content": "u" * 50}]),
        ("stream", True),
    ]
    rng = random.Random(7)
    for cap in (4, 20, 64, 100, 120, 1000):
        seen = set()
        for _ in range(24):
            rng.shuffle(fields)
            found = scan.scan_body(json.dumps(dict(fields)).encode(), scan.MESSAGES, cap)
            assert found is not None and found.prompt is not None
            assert found.truncated == (cap < 140)
            seen.add(found.prompt)
        assert len(seen) == 1


def test_media_enters_by_digest_whatever_its_escaping() -> None:
    url = "data:image/png;base64," + "Ab/+" * 40_000
    part = {"type": "image_url", "image_url": {"url": url}}
    body = chat(messages=[{"role": "user", "content": [part]}]).decode()
    plain, slashed = prompt_of(body.encode()), prompt_of(body.replace("/", "\\/").encode())
    assert plain is not None and plain == slashed and len(plain) < 100
    assert prompt_of(body.replace("Ab/+", "Ac/+", 1).encode()) != plain


def test_token_ids() -> None:
    found = scan.scan_body(b'{"prompt":[1, 2 ,4294967294]}', scan.COMPLETIONS)
    assert found is not None and found.prompt is None
    assert found.tokens == b"\1\0\0\0\2\0\0\0\xfe\xff\xff\xff"
    found = scan.scan_body(b'{"input":[[1],[2,3]]}', scan.EMBEDDINGS)
    assert found is not None
    assert found.tokens == b"\1\0\0\0\xff\xff\xff\xff\2\0\0\0\3\0\0\0"


NOT_PLAIN = [
    b"",
    b" ",
    b"[]",
    b"null",
    b"{",
    b'{"a"',
    b'{"a":',
    b'{"a":1',
    b'{"a":1,}',
    b'{"a":1}x',
    b'{"a":1}{',
    b"{a:1}",
    b'{"a" 1}',
    b'{"model":"m","model":"n"}',
    b'{"mod\\u0065l":"m"}',
    b'{"kv_transfer_\\u0070arams":{}}',
    b'{"model":"\\x"}',
    b'{"model":"\\u12"}',
    b'{"model":"\xff"}',
    b'{"model":"a\nb"}',
    b'{"model":"m"',
    '{"model":"m"}'.encode("utf-16"),
    '{"model":"m"}'.encode("utf-16-le"),
    '{"model":"m"}'.encode("utf-16-be"),
    '{"model":"m"}'.encode("utf-32-le"),
    '{"model":"m"}'.encode("utf-8-sig"),
]


@pytest.mark.parametrize("body", NOT_PLAIN, ids=repr)
def test_what_is_not_plain_is_left_to_the_full_decoder(body: bytes) -> None:
    assert scan.scan_body(body, scan.CHAT) is None


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
@pytest.mark.parametrize("inner", ["null", "{}", '{"a":[1,"}"]}', '"x"'])
def test_transfer_params_are_seen_at_the_top_only(name: str, inner: str) -> None:
    found = scan.scan_body(f'{{"a":{{"{name}":1}},"{name}" : {inner}}}'.encode())
    assert found is not None and found.transfer == name
    found = scan.scan_body(f'{{"a":{{"{name}":{inner}}},"b":"{name}"}}'.encode())
    assert found is not None and found.transfer == ""


IRREGULAR = [
    '[{"role":"user","role":"user","content":"a"}]',
    '[{"role":"user","content":"a","content":"b"}]',
    '[{"role":"user","content":"a","c\\u006fntent":"a"}]',
    '[{"role":1,"content":"a"}]',
    '[{"role":"user","content":[{"type":"text","text":"a","text":"b"}]}]',
    '["text"]',
    '{"role":"user"}',
    '"text"',
]


@pytest.mark.parametrize("number", [0, 9, 10, 9999999, 10000000, 99999999, 4294967294])
@pytest.mark.parametrize("tail", ["", " ", ",1", " , 12345678", "\t"])
def test_every_length_of_a_token_id(number: int, tail: str) -> None:
    body = f'{{"prompt":[{number}{tail}]}}'.encode()
    expected = array.array("I", json.loads(f"[{number}{tail}]")).tobytes()
    found = scan.scan_body(body, scan.COMPLETIONS)
    assert found is not None and found.tokens == expected


@pytest.mark.parametrize(
    "ids", ["01", "4294967295", "99999999999", "-1", "1.0", "1e3", "1:", "1/2"]
)
def test_what_is_no_token_id(ids: str) -> None:
    for text in (f'{{"prompt":[{ids}]}}', f'{{"prompt":[7,{ids}], "model":"m"}}'):
        found = scan.scan_body(text.encode(), scan.COMPLETIONS)
        assert found is None or found.tokens is None


@pytest.mark.parametrize("messages", IRREGULAR)
def test_irregular_messages_have_no_prompt_but_the_rest_is_read(messages: str) -> None:
    found = scan.scan_body(f'{{"messages":{messages},"model":"m","stream":true}}'.encode(), 0)
    assert found is not None
    assert (found.prompt, found.tokens, found.model, found.stream) == (None, None, "m", True)


def test_members_gives_offsets_of_every_member_however_spelled() -> None:
    body = b' { "a" : 1 , "a":"x", "\\u0062":[{"a":2}] } '
    found = scan.members(body)
    assert found is not None
    assert [body[key:end] for key, _, end in found] == [
        b'"a" : 1',
        b'"a":"x"',
        b'"\\u0062":[{"a":2}]',
    ]
    assert [body[start:end] for _, start, end in found] == [b"1", b'"x"', b'[{"a":2}]']
    assert scan.members(b"{}") == []
    for broken in (b"", b"[1]", b'{"a":1', b'{"a":1} x', b'{"a"}'):
        assert scan.members(broken) is None


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_cut_and_damaged_bodies_never_crash(seed: int, data: st.DataObject) -> None:
    body = bytearray(bodies.body(random.Random(seed)))
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(body[: data.draw(st.integers(0, len(body)))])
    for kind in range(6):
        found = scan.scan_body(damaged, kind)
        try:
            damaged.decode()
            json.loads(damaged)
        except ValueError:
            continue
        if found is not None:
            assert_same(damaged, kind)


def test_depth_is_no_problem() -> None:
    deep = "[" * 200_000 + "]" * 200_000
    body = f'{{"messages":[{{"role":"user","content":{deep}}}],"tools":{deep}}}'.encode()
    assert prompt_of(body) is not None
    found = scan.scan_body(b'{"a":' + b"[" * 1_000_000, scan.CHAT)
    assert found is None


def test_the_cap_must_be_sane() -> None:
    with pytest.raises(ValueError, match="cap is 3"):
        scan.scan_body(b"{}", scan.CHAT, 3)
    with pytest.raises(TypeError):
        scan.Scan()
