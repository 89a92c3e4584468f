"""The start of a body made whole: valid wherever it is cut, and never more than was told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from warmlane._core.scan import CHAT, scan_body
from warmlane.router.mend import mended

_TEXT = st.text(max_size=20) | st.sampled_from(["\\", '"', "\U0001f469\u200d\U0001f4bb", "\x00\n"])
_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_BODY = st.dictionaries(st.sampled_from(["model", "prompt", "messages", "x", "input"]), _VALUE)


def is_start(found: Any, whole: Any, inside: bool = False) -> bool:
    """Is `found` what a prefix of `whole` tells? Only texts inside of others may be cut."""
    if isinstance(whole, dict) and isinstance(found, dict):
        names = list(whole)[: len(found)]
        return list(found) == names and all(
            is_start(found[name], whole[name], True) for name in names
        )
    if isinstance(whole, list) and isinstance(found, list):
        return all(is_start(a, b, True) for a, b in zip(found, whole, strict=False))
    if inside and isinstance(whole, str) and isinstance(found, str):
        return whole.startswith(found)
    return type(found) is type(whole) and bool(found == whole)


@given(_BODY, st.booleans(), st.integers(0, 400))
@example({"prompt": None, "model": {"x": {"a": None, "b": "0"}}}, True, 48)
def test_any_cut_of_any_body(body: dict[str, Any], plain: bool, cut: int) -> None:
    raw = json.dumps(body, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    part = raw[:cut]
    found = mended(part)
    if found is None:
        assert b"{" not in part
        return
    text, kept = found
    assert kept <= len(part) and text.startswith(part[:kept])
    try:
        told = json.loads(text)
    except UnicodeDecodeError:
        assert "surrogates" in ascii(body) or not plain  # lone ones, as they came
        return
    assert all(name in body for name in told)
    assert all(
        is_start(told[name], body[name], name in ("prompt", "input", "messages", "x"))
        for name in told
    )
    if cut >= len(raw):
        assert found == (raw, len(raw))


def test_a_name_that_is_cut_is_no_name() -> None:
    assert mended(b'{"stream":true,"model":"llama-3') == (b'{"stream":true}', 14)
    assert mended(b'{"prompt":"llama-3') == (b'{"prompt":"llama-3"}', 18)
    assert mended(b'{"model":"m","n":1') == (b'{"model":"m"}', 12)
    assert mended(b'{"model":"m","messages') == (b'{"model":"m"}', 12)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (b'{"prompt":"a\\', b'{"prompt":"a"}'),
        (b'{"prompt":"a\\\\', b'{"prompt":"a\\\\"}'),
        (b'{"prompt":"a\\u00', b'{"prompt":"a"}'),
        (b'{"prompt":"a\\u00e9', b'{"prompt":"a\\u00e9"}'),
        (b'{"prompt":"a\\ud83d', b'{"prompt":"a"}'),
        (b'{"prompt":"a\\ud83d\\ude', b'{"prompt":"a"}'),
        (b'{"prompt":"a\\ud83d\\ude00', b'{"prompt":"a\\ud83d\\ude00"}'),
        (b'{"prompt":"a\\\\ud83d', b'{"prompt":"a\\\\ud83d"}'),
        ('{"prompt":"a\u00e9'.encode()[:-1], b'{"prompt":"a"}'),
        ('{"prompt":"a\U0001f469'.encode()[:-1], b'{"prompt":"a"}'),
        ('{"prompt":"a\U0001f469'.encode(), '{"prompt":"a\U0001f469"}'.encode()),
    ],
)
def test_escapes_and_characters_stay_whole(part: bytes, text: bytes) -> None:
    found = mended(part)
    assert found is not None and found[0] == text


@pytest.mark.parametrize("part", [b"", b"   ", b"[1", b'"x', b"{}x"[:0], b"no", b"}"])
def test_what_is_no_object_is_none(part: bytes) -> None:
    assert mended(part) is None


def test_the_start_has_the_prompt_of_the_whole() -> None:
    words = " ".join(f"word{number}" for number in range(4000))
    whole = {"model": "m", "messages": [{"role": "user", "content": words}], "stream": True}
    raw = json.dumps(whole).encode()
    found = mended(raw[:16_384])
    assert found is not None
    part, all_of_it = scan_body(found[0], CHAT), scan_body(raw, CHAT)
    assert part is not None and all_of_it is not None and part.model == "m"
    assert part.prompt is not None and all_of_it.prompt is not None
    same = 16_000
    assert part.prompt[:same] == all_of_it.prompt[:same]


@pytest.mark.parametrize(
    "part",
    [b'{"prompt":[' + b"1," * 60_000, b'{"a":' + b"[" * 90_000, b'{"prompt":"' + b"\\" * 90_000],
)
def test_hostile_bodies_are_cut(part: bytes) -> None:
    found = mended(part)
    assert found is not None and found[1] <= 65_536 and len(found[0]) <= 2 * 65_536
