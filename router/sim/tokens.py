"""The fake engine's tokenizer, chat template, generated text and block keys.

A token is 4 bytes of UTF-8 and its id is those bytes as a little-endian 32-bit number, so ids and
text convert both ways without a table and a prompt of n tokens is 4 n bytes. A last piece that is
short is filled with NUL bytes. Real tokenizers cut elsewhere; what matters to a router holds here:
equal prefixes give equal ids, and an answer that comes back in the next prompt gives the ids that
were generated, because the template keeps every part on a 4-byte boundary.

Owns no state. Cost: under 1 us a KB to tokenize, under 0.1 us a block for the keys.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from warmlane._core.hashing import token_keys

TOKEN_BYTES = 4
VOCABULARY = 1 << 32

_SYLLABLES = [
    f" {first}{vowel}{last}".encode()
    for first in "bdfghklmnprstvwz"
    for vowel in "aeio"
    for last in "lnrs"
]  # 256 words of 4 bytes: one byte of a digest picks one token


def tokenize(text: bytes) -> array[int]:
    """UTF-8 bytes -> token ids."""
    short = -len(text) % TOKEN_BYTES
    ids = array("I")
    ids.frombytes(text + b"\0" * short if short else text)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def detokenize(ids: Sequence[int]) -> str:
    """Token ids -> text; the filling of a short piece disappears. OverflowError: not an id."""
    data = array("I", ids)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes().replace(b"\0", b"").decode("utf-8", "replace")


def words(seed: bytes, count: int) -> bytes:
    """`count` tokens of readable text that depend on the seed alone."""
    picks = hashlib.shake_128(seed).digest(count)
    return b"".join(map(_SYLLABLES.__getitem__, picks))


def block_keys(root: int, ids: array[int], size: int) -> list[int]:
    """Chained 64-bit keys of the full blocks: this engine's hashes, told apart by its own root."""
    return memoryview(token_keys(root, ids, size)).tolist()


def _aligned(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return data + b" " * (-len(data) % TOKEN_BYTES)


def _content(content: Any) -> str:
    """Text of a message's content: a string, or a list of parts of which text and images count."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(
        part.get("text") or msgspec.json.encode(part).decode()
        for part in content
        if isinstance(part, dict)
    )


def render_chat(messages: Sequence[Any], tools: Any = None, prompt: bool = True) -> bytes:
    """Messages -> the prompt of the model, tools first, each part on a 4-byte boundary.

    prompt: end with the head of the assistant's answer. TypeError or AttributeError when a
    message is not an object or its content is neither text nor parts.
    """
    out = []
    if tools:
        out.append(_aligned(f"<|tools|>\n{msgspec.json.encode(tools).decode()}"))
    for message in messages:
        out.append(_aligned(f"<|{message['role']}|>\n"))
        text = _content(message.get("content"))
        if message.get("tool_calls"):
            text += msgspec.json.encode(message["tool_calls"]).decode()
        out.append(_aligned(text))
        out.append(b"<|end|>\n")
    if prompt:
        out.append(_aligned("<|assistant|>\n"))
    return b"".join(out)
