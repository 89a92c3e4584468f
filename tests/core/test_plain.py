"""Keys straight from the body against a full decode, and against the compiled scan and hash."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import bodies
from tests.core import twin_plain as twin
from warmlane._core import hashing, plain, scan

ROOT = hashing.root_key("m")
BLOCKS = (128, 128, 1, 7, 16, 120, 127, 129, 232)


def found_of(body: bytes, kind: int, block: int = 128) -> twin.Found | None:
    found = plain.keys_of(body, kind, ROOT, block)
    return found and (found[0], list(found[1]), *found[2:])


def assert_same_as_scan(body: bytes, kind: int, block: int = 128) -> None:
    """Whatever the body is: what has keys here has canonical bytes there, and the same keys."""
    found, scanned = plain.keys_of(body, kind, ROOT, block), scan.scan_body(body, kind)
    if found is None:
        return
    assert scanned is not None and scanned.prompt is not None
    assert not scanned.truncated and not scanned.salt and not scanned.transfer
    keys = hashing.text_keys(ROOT, scanned.prompt, block)
    assert found[1] == keys
    assert found[2] == scanned.prompt[len(keys) * block :]
    assert found[4] == scanned.stream
    assert found[5] == (-1 if scanned.max_tokens is None else scanned.max_tokens)


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(range(6)), st.sampled_from(BLOCKS))
def test_keys_and_full_decoder_agree(seed: int, kind: int, block: int) -> None:
    body = bodies.body(random.Random(seed))
    found, expected = found_of(body, kind, block), twin.keys_of(body, kind, ROOT, block)
    assert_same_as_scan(body, kind, block)
    if found is None and expected is not None:  # an escaped name is for the full way
        fields = json.loads(body)
        names = [name for name in fields if "\\" in json.dumps(name)]
        assert names or b"\\" in body
        return
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(range(5)), st.sampled_from(BLOCKS))
def test_a_plain_body_is_never_refused(seed: int, kind: int, block: int) -> None:
    rng = random.Random(seed)
    member = ("messages", "prompt", "input", "messages", "input")[kind]
    content = bodies.text(rng) * rng.randrange(1, 4)
    inner = [{"role": "user", "content": content}] if member == "messages" else content
    fields = [("model", "m"), (member, inner), ("tools", [1]), ("system", "S"), ("stream", True)]
    rng.shuffle(fields)
    body = json.dumps(dict(fields), ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace")
    found = found_of(body, kind, block)
    assert found is not None and found == twin.keys_of(body, kind, ROOT, block)


@pytest.mark.parametrize("block", [128, 100])
def test_every_place_of_an_escape_and_every_end(block: int) -> None:
    letters = "".join(chr(97 + at % 26) for at in range(700))
    for place in range(0, 700, 3):
        for tail in (0, 1, place % 300):
            text = letters[:place] + '"' + letters[:tail]
            body = json.dumps({"model": "m", "messages": [{"role": "u", "content": text}]}).encode()
            assert found_of(body, 0, block) == twin.keys_of(body, 0, ROOT, block)
    for size in range(700):
        body = b'{"model":"m","prompt":"%s"}' % letters[:size].encode()
        assert found_of(body, 1, block) == twin.keys_of(body, 1, ROOT, block)


def test_every_order_of_members_gives_the_same_keys() -> None:
    chat = [{"role": "user", "content": "word " * 500}]
    fields = {"model": "m", "messages": chat, "tools": [{"x": "y" * 300}], "system": "S" * 200}
    rng, seen = random.Random(1), []
    for _ in range(24):
        names = rng.sample(sorted(fields), 4)
        seen.append(found_of(json.dumps({name: fields[name] for name in names}).encode(), 3))
    assert seen[0] is not None and len(seen[0][1]) == 23
    assert all(found == seen[0] for found in seen)


def test_long_runs_and_many_escapes_in_turns() -> None:
    rng = random.Random(7)
    parts = [rng.choice(("plain " * rng.randrange(900), 'a "b"\n' * 40, "é\\")) for _ in range(60)]
    chat = [{"role": "user", "content": part} for part in parts]
    for escape in (True, False):
        body = json.dumps({"model": "m", "messages": chat}, ensure_ascii=escape).encode()
        assert found_of(body, 0) == twin.keys_of(body, 0, ROOT)
        assert_same_as_scan(body, 0)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (0, b'{"model":"m\\"","messages":[]}'),
        (0, b'{"model":"m","messages":[{"role":"user","content":"x"}],"model":"n"}'),
        (0, b'{"model":"m","messages":[{"role":"user","content":"x"}],"messages":[]}'),
        (0, b'{"messages":[],"model":"m","messages":[]}'),
        (0, b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":null}'),
        (0, b'{"model":"m","messages":[{"role":"user","content":"x"}],"cache_salt":"s"}'),
        (0, b'{"model":"m","messages":[{"role":"user","content":"x"}],"kv_transfer_params":1}'),
        (0, b'{"model":"m","messages":[{"role":"user","content":"x\n"}]}'),
        (0, b'{"model":"m","messages":[{"role":"user","content":"x"}]'),
        (0, b'{"messages":[{"role":"user","content":"x"}],"model":"m"} x'),
        (0, b'{"model":"m","messages":null}'),
        (0, b'{"model":"m"}'),
        (0, b"[]"),
        (0, b""),
        (1, b'{"model":"m","prompt":[1,2,3]}'),
        (1, b'{"model":"m","prompt":[[1],[2]]}'),
        (1, b'{"model":"m","prompt":["a",1]}'),
        (1, b'{"prompt":["a",1],"model":"m"}'),
        (4, b'{"model":"m","messages":[{"role":"user","content":"x"}]}'),
        (5, b'{"model":"m","prompt":"x"}'),
        (1, b'{"model":"m","prompt":"%s"}' % (b"x" * (4 << 20))),
    ],
)
def test_what_has_no_keys(kind: int, body: bytes) -> None:
    assert plain.keys_of(body, kind, ROOT) is None


def test_several_prompts_and_the_mark_between_them() -> None:
    for prompt, several in ((["a", "b"], True), (["a"], False), ("a", False)):
        body = json.dumps({"model": "m", "prompt": prompt}).encode()
        found = plain.keys_of(body, 1, ROOT)
        assert found is not None and found[3] is several
    lone = plain.keys_of(b'{"model":"m","prompt":"a\xf5b"}', 1, ROOT)  # no UTF-8
    assert lone is not None and lone[2:4] == (b"a\xf5b", True)


def test_refused_memory() -> None:
    body = b'{"model":"m","prompt":"x"}'
    plain._fail_allocation_after(0)
    try:
        with pytest.raises(MemoryError):
            plain.keys_of(body, 1, ROOT)
    finally:
        plain._fail_allocation_after(-1)
    assert plain.keys_of(body, 1, ROOT) is not None


def test_arguments_are_checked() -> None:
    for root, block in ((0, 128), (1, 0), (1, 233)):
        with pytest.raises(ValueError, match="block is"):
            plain.keys_of(b"{}", 0, root, block)
