"""Plain-Python oracle of `_core.scan`: decodes the whole body, then writes the canonical bytes.

It shares no code and no method with the compiled scan: the standard library's decoder gives objects
as lists of pairs and numbers as their text, and docs/hashing.md is followed over those.
"""

from __future__ import annotations

import array
import json
from dataclasses import dataclass
from typing import Any, TypeGuard

from tests.core.twin_hashing import digest

MESSAGE, CONTENT, STRING, STRING_END = b"\xff", b"\xfe", b"\xfd", b"\xfc"
PART, DIGEST, ITEM, TOOLS, SCALAR, FIELD, NEXT = (bytes([code]) for code in range(0xFB, 0xF4, -1))
MEDIA_KEYS = {"url", "data", "image_url", "file_data", "image_embeds"}
TEXT_TYPES = {"text", "input_text", "output_text"}
MESSAGE_FIELDS = ("name", "tool_call_id", "tool_calls", "function_call")
KNOWN = (
    *("model", "stream", "messages", "prompt", "input", "tools", "system", "instructions"),
    *("max_completion_tokens", "max_output_tokens", "max_tokens", "cache_salt", "session_id"),
    *("priority", "kv_transfer_params", "ec_transfer_params", "n", "prompt_logprobs"),
)


class Number(str):
    """A number as it was written."""


class Pairs(list[tuple[str, Any]]):
    """An object with its order and its repeated members."""


class IrregularError(Exception):
    """The prompt has no canonical bytes."""


@dataclass
class Found:
    model: str = ""
    stream: bool = False
    max_tokens: int | None = None
    salt: str = ""
    session: str = ""
    priority: int = 0
    prompt: bytes | None = None
    tokens: bytes | None = None
    transfer: str = ""
    samples: int = 1
    reads_cache: bool = True


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def value(item: Any, media: bool, key: str = "") -> bytes:
    if isinstance(item, Pairs):
        body = b"".join(
            STRING + utf8(name) + STRING_END + value(inner, media, name)
            for name, inner in item
            if name != "cache_control"
        )
        return b"{" + body + b"}"
    if isinstance(item, list):
        return b"[" + b"".join(value(inner, media) for inner in item) + b"]"
    if isinstance(item, Number) or not isinstance(item, str):
        text = (
            item if isinstance(item, Number) else {None: "null", True: "true", False: "false"}[item]
        )
        return SCALAR + text.encode()
    raw = utf8(item)
    if media and key in MEDIA_KEYS and len(raw) > 256:
        return DIGEST + digest(raw).to_bytes(8, "little")
    return STRING + raw + STRING_END


def is_text(item: Any) -> TypeGuard[str]:
    return isinstance(item, str) and not isinstance(item, Number)


def part(item: Any) -> bytes:
    if is_text(item):
        return utf8(item)
    if isinstance(item, Pairs):
        for name in ("type", "text"):
            if [key for key, _ in item].count(name) > 1:
                raise IrregularError
        fields = dict(item)
        kind, text = fields.get("type"), fields.get("text")
        if is_text(text) and is_text(kind) and kind in TEXT_TYPES:
            return utf8(text)
    return ITEM + value(item, True)


def content(item: Any) -> bytes:
    if item is None:
        return b""
    if is_text(item):
        return CONTENT + utf8(item)
    if isinstance(item, list) and not isinstance(item, Pairs):
        return CONTENT + PART.join(part(inner) for inner in item)
    return CONTENT + ITEM + value(item, True)


def message(item: Any) -> bytes:
    if not isinstance(item, Pairs):
        raise IrregularError
    names = [key for key, _ in item]
    for name in ("role", "content", *MESSAGE_FIELDS):
        if names.count(name) > 1:
            raise IrregularError
    fields = dict(item)
    if "role" not in fields:
        return ITEM + value(item, True)
    if not is_text(fields["role"]):
        raise IrregularError
    out = MESSAGE + utf8(fields["role"]) + content(fields.get("content"))
    for index, name in enumerate(MESSAGE_FIELDS):
        if fields.get(name) is not None:
            out += FIELD + bytes([97 + index]) + value(fields[name], False)
    return out


def as_message(role: bytes, item: Any) -> bytes:
    return b"" if item is None else MESSAGE + role + content(item)


def messages(item: Any) -> bytes:
    if not isinstance(item, list) or isinstance(item, Pairs):
        raise IrregularError
    return b"".join(message(inner) for inner in item)


def ids(item: list[Any]) -> bytes:
    if not all(isinstance(inner, Number) and inner.isdigit() for inner in item):
        raise IrregularError
    numbers = [int(inner) for inner in item]
    if any(number >= 2**32 - 1 for number in numbers):
        raise IrregularError
    return array.array("I", numbers).tobytes()


def prompt(item: Any) -> tuple[bytes | None, bytes | None]:
    """(text, token ids)"""
    if item is None or (item == [] and not isinstance(item, Pairs)):
        return None, None
    if is_text(item):
        return utf8(item), None
    if isinstance(item, list) and not isinstance(item, Pairs):
        if all(is_text(inner) for inner in item):
            return NEXT.join(utf8(inner) for inner in item), None
        if isinstance(item[0], Number):
            return None, ids(item)
        if all(isinstance(inner, list) and not isinstance(inner, Pairs) for inner in item):
            return None, b"\xff\xff\xff\xff".join(ids(inner) for inner in item)
    raise IrregularError


def prompt_of(fields: dict[str, Any], kind: int) -> tuple[bytes | None, bytes | None]:
    if kind in (0, 3) or (kind == 4 and "input" not in fields):
        if fields.get("messages") is None:
            return None, None
        head = as_message(b"system", fields.get("system")) if kind == 3 else b""
        return tools(fields) + head + messages(fields["messages"]), None
    if kind == 2:
        if fields.get("input") is None:
            return None, None
        head = tools(fields) + as_message(b"system", fields.get("instructions"))
        main = fields["input"]
        return head + (as_message(b"user", main) if is_text(main) else messages(main)), None
    if kind == 5:
        return None, None
    return prompt(fields.get("prompt" if kind == 1 else "input"))


def tools(fields: dict[str, Any]) -> bytes:
    return b"" if fields.get("tools") is None else TOOLS + value(fields["tools"], False)


def integer(item: Any) -> int | None:
    if not isinstance(item, Number) or len(item) > 18 or not item.removeprefix("-").isdigit():
        return None
    return int(item)


def scan(body: bytes, kind: int = 5, cap: int = 4 << 20) -> Found | None:
    """None: not a JSON object, or a known member stands in it twice."""
    try:
        top = json.loads(
            body,
            object_pairs_hook=Pairs,
            parse_int=Number,
            parse_float=Number,
            parse_constant=Number,
        )
    except (ValueError, RecursionError):
        return None
    names = [key for key, _ in top] if isinstance(top, Pairs) else []
    if not isinstance(top, Pairs) or any(names.count(name) > 1 for name in KNOWN):
        return None
    fields = dict(top)
    found = Found(stream=fields.get("stream") is True)
    try:
        text, tokens = prompt_of(fields, kind)
        found.prompt = None if text is None else text[:cap]
        found.tokens = None if tokens is None else tokens[:cap]
    except IrregularError:
        pass
    found.model, found.salt, found.session = (
        fields[name] if is_text(fields.get(name)) else ""
        for name in ("model", "cache_salt", "session_id")
    )
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        number = integer(fields.get(name))
        if number is not None:
            found.max_tokens = number if number >= 0 else None
            break
    found.priority = integer(fields.get("priority")) or 0
    found.samples = max(1, integer(fields.get("n")) or 1)
    found.reads_cache = fields.get("prompt_logprobs") is None
    for name in ("kv_transfer_params", "ec_transfer_params"):
        if name in fields:
            found.transfer = name
            break
    return found
