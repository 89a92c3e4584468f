"""Prefix keys: what shares a prefix, what must not, and what the next turn sends."""

from __future__ import annotations

import array
import json
from typing import Any

import pytest

from warmlane._core.hashing import KeyArray
from warmlane.router.prefix import PrefixKey, next_turn, prefix_key
from warmlane.router.requests import parse
from warmlane.router.types import Kind, Request

JSON = {b"content-type": b"application/json"}


def request(path: str, **fields: Any) -> Request:
    body = json.dumps({"model": "m", **fields}).encode()
    return parse("POST", path, JSON, body, transfer_params="reject")[0]


def chat(*messages: dict[str, Any], **fields: Any) -> Request:
    return request("/v1/chat/completions", messages=list(messages), **fields)


def key(asked: Request, model: str = "m", adapter: str = "", block: int = 16) -> PrefixKey:
    return prefix_key(asked, model, adapter, block_bytes=block, block_tokens=4)


def shared(one: KeyArray, two: KeyArray) -> int:
    pairs = zip(memoryview(one), memoryview(two), strict=False)
    count = 0
    for left, right in pairs:
        if left != right:
            break
        count += 1
    return count


SYSTEM = {"role": "system", "content": "You are a careful assistant. " * 8}
USER = {"role": "user", "content": "Tell me about routers, please, at some length."}


def test_conversations_share_exactly_their_common_blocks() -> None:
    one = key(chat(SYSTEM, USER))
    two = key(chat(SYSTEM, {"role": "user", "content": "Something else entirely."}))
    common = len("\xffsystem\xfe") + len(SYSTEM["content"]) + len("\xffuser\xfe")
    assert one.unit == "text" and one.block == 16
    assert shared(one.keys, two.keys) == common // 16
    assert one.size > common


def test_model_adapter_and_salt_share_nothing() -> None:
    base = chat(SYSTEM, USER)
    salted = chat(SYSTEM, USER, cache_salt="tenant")
    seen = [
        key(base),
        key(base, model="other"),
        key(base, adapter="lora"),
        key(salted),
        key(salted, adapter="lora"),
    ]
    assert len({found.keys[0] for found in seen}) == len(seen)


@pytest.mark.parametrize("text", ["short", "A longer answer, " * 20, "naïve 😀 \n"])
def test_the_next_turn_finds_the_answer_of_this_one(text: str) -> None:
    first = chat(SYSTEM, USER)
    foretold = next_turn(first, key(first), text.encode())
    answer = {"role": "assistant", "content": text}
    second = key(chat(SYSTEM, USER, answer, {"role": "user", "content": "And then?" * 9}))
    assert shared(foretold, second.keys) == len(foretold)
    assert len(foretold) == (key(first).size + len(b"\xffassistant\xfe" + text.encode())) // 16


def test_the_next_turn_of_other_kinds() -> None:
    text = "It was a dark and stormy night; " * 4
    first = request("/v1/completions", prompt="Once upon a time, " * 4)
    longer = request("/v1/completions", prompt="Once upon a time, " * 4 + text + "then")
    foretold = next_turn(first, key(first), text.encode())
    assert shared(foretold, key(longer).keys) == len(foretold) > len(key(first).keys)
    first = request("/v1/messages", system="S" * 40, messages=[USER])
    turns = [USER, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
    longer = request("/v1/messages", system="S" * 40, messages=turns)
    assert next_turn(first, key(first), text.encode()) == key(longer).keys
    first = request("/v1/responses", input="Hello there, what is new?")
    items = [{"role": "user", "content": "Hello there, what is new?"}]
    items.append({"role": "assistant", "content": text})
    longer = request("/v1/responses", input=items)
    assert next_turn(first, key(first), text.encode()) == key(longer).keys


def test_no_next_turn_where_none_can_be_foretold() -> None:
    several = request("/v1/completions", prompt=["one " * 20, "two " * 20])
    ids = request("/v1/completions", prompt=list(range(40)))
    embedding = request("/v1/embeddings", input="one " * 20)
    for asked in (several, ids, embedding, chat(SYSTEM)):
        found = key(asked)
        text = b"" if asked.kind is Kind.CHAT else b"text " * 20
        assert next_turn(asked, found, text) is found.keys


def test_token_ids_are_hashed_as_uint32() -> None:
    found = key(request("/v1/completions", prompt=list(range(10))))
    assert (found.unit, found.size, found.block, len(found.keys)) == ("tokens", 10, 4, 2)
    bare = Request(kind=Kind.COMPLETIONS, tokens=array.array("I", range(10)).tobytes())
    assert key(bare).keys == found.keys


def test_a_request_without_a_prompt_has_no_keys() -> None:
    found = key(Request(kind=Kind.OTHER))
    assert (found.unit, found.size, len(found.keys)) == ("none", 0, 0)
