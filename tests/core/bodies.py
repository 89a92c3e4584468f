"""Random request bodies for the scan's tests and its fuzzer: valid JSON, in every spelling."""

from __future__ import annotations

import json
import random
from typing import Any

PIECES = (
    *("", "hello", "the quick brown fox " * 3, '\n\t"\\/\b\f\r', "é", "日本語", "😀", "\u0000"),
    *("\ud800", "\udc00x", "A" * 255, "B" * 257, "data:image/png;base64," + "Q" * 900, "}{][,:"),
    *(
        "\u007f",
        "line\nline\n" * 9,
        "\\u0041",
        "x" * 15,
        "y" * 16,
        "z" * 17,
        "\x7f\x80\u07ff\uffff",
    ),
)
KEYS = ("a", "b", "url", "data", "cache_control", "type", "text", "role", "content", "id", "é\n")


def spell(rng: random.Random, text: str) -> str:
    """A JSON string literal for text, escaped now less, now more."""
    style = rng.randrange(4)
    if style == 0:
        return json.dumps(text)
    out = []
    for char in text:
        code = ord(char)
        short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
        if 0xD800 <= code < 0xE000 or (style == 3 and rng.random() < 0.3):
            units = char.encode("utf-16-be", "surrogatepass").hex()
            units = units.upper() if rng.random() < 0.5 else units
            out += ["\\u" + units[i : i + 4] for i in range(0, len(units), 4)]
        elif code in short and style != 3:
            out.append(short[code])
        elif code < 0x20 or char in '"\\':
            out.append(f"\\u{code:04x}")
        else:
            out.append("\\/" if char == "/" and style == 2 else char)
    return '"' + "".join(out) + '"'


def space(rng: random.Random) -> str:
    return rng.choice(("", "", "", " ", "\n", " \t\r\n"))


def encode(rng: random.Random, item: Any, spell_keys: bool = True) -> str:
    """JSON text of item. An object is a list of pairs in a tuple, or a dict."""
    gap = space(rng)
    if isinstance(item, dict):
        item = tuple(item.items())
    if isinstance(item, tuple):
        members = (
            gap
            + (spell(rng, key) if spell_keys else json.dumps(key))
            + space(rng)
            + ":"
            + space(rng)
            + encode(rng, inner)
            for key, inner in item
        )
        return "{" + ",".join(members) + space(rng) + "}"
    if isinstance(item, list):
        return "[" + ",".join(gap + encode(rng, inner) + space(rng) for inner in item) + gap + "]"
    if isinstance(item, str):
        return spell(rng, item)
    return json.dumps(item)


def text(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(4)))


def anything(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(8 if depth else 5)
    if kind < 3:
        return text(rng)
    if kind == 3:
        return rng.choice((0, -1, 1.5, 1e30, 12345678901234567890, 7))
    if kind == 4:
        return rng.choice((None, True, False))
    if kind == 5:
        return [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return tuple((rng.choice(KEYS), anything(rng, depth - 1)) for _ in range(rng.randrange(4)))


def content(rng: random.Random) -> Any:
    kind = rng.randrange(6)
    if kind < 3:
        return text(rng)
    if kind == 3:
        return rng.choice((None, anything(rng)))
    parts: list[Any] = []
    for _ in range(rng.randrange(4)):
        what = rng.randrange(4)
        if what < 2:
            part: list[tuple[str, Any]] = [
                ("type", rng.choice(("text", "input_text", "odd"))),
                ("text", text(rng)),
            ]
            part += [("cache_control", {"type": "ephemeral"})] * rng.randrange(2)
            rng.shuffle(part)
            parts.append(tuple(part))
        elif what == 2:
            parts.append({"type": "image_url", "image_url": {"url": text(rng) * 20}})
        else:
            parts.append(anything(rng))
    return parts


def message(rng: random.Random) -> Any:
    fields: list[tuple[str, Any]] = [
        ("role", rng.choice(("system", "user", "assistant", "tool"))),
        ("content", content(rng)),
    ]
    if rng.random() < 0.3:
        fields.append(("tool_calls", anything(rng)))
    if rng.random() < 0.2:
        fields.append(("name", text(rng)))
    if rng.random() < 0.2:
        fields.append(("refusal", None))
    if rng.random() < 0.3:
        rng.shuffle(fields)
    if rng.random() < 0.05:
        fields.append(rng.choice(fields))
    if rng.random() < 0.1:
        fields.pop(0)
    return tuple(fields)


def prompt(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind < 2:
        return text(rng)
    if kind == 2:
        return [text(rng) for _ in range(rng.randrange(4))]
    if kind == 3:
        return [rng.randrange(10 ** rng.randint(1, 9)) for _ in range(rng.randrange(40))]
    if kind == 4:
        return [[rng.randrange(99) for _ in range(rng.randrange(5))] for _ in range(3)]
    if kind == 5:
        return [
            rng.choice((1, 2**32 - 2, 2**32 - 1, 2**40, 0, -1, 1.5, "x", None)) for _ in range(2)
        ]
    return anything(rng)


def fields(rng: random.Random) -> list[tuple[str, Any]]:
    """The members of one request body."""
    found: list[tuple[str, Any]] = [("model", rng.choice(("m", "org/mödel", text(rng), 5, None)))]
    chat = [message(rng) for _ in range(rng.randrange(5))]
    found += [("messages", chat if rng.random() < 0.95 else anything(rng))] * (rng.random() < 0.6)
    found += [("prompt", prompt(rng))] * (rng.random() < 0.5)
    what = rng.choice((prompt(rng), [message(rng) for _ in range(3)]))
    found += [("input", what)] * (rng.random() < 0.5)
    found += [("tools", anything(rng))] * (rng.random() < 0.3)
    found += [("system", content(rng))] * (rng.random() < 0.3)
    found += [("instructions", content(rng))] * (rng.random() < 0.3)
    found += [("stream", rng.choice((True, False, None, 1, "true")))] * (rng.random() < 0.5)
    numbers = ("max_tokens", "max_completion_tokens", "max_output_tokens", "priority")
    for name in (*numbers, "n", "prompt_logprobs"):
        found += [(name, rng.choice((0, 16, -3, 2.5, None, 10**17, 10**20, "5")))] * (
            rng.random() < 0.3
        )
    found += [("cache_salt", text(rng))] * (rng.random() < 0.2)
    found += [("session_id", text(rng))] * (rng.random() < 0.2)
    found += [("kv_transfer_params", {"do_remote_prefill": True})] * (rng.random() < 0.1)
    found += [("ec_transfer_params", None)] * (rng.random() < 0.05)
    found += [("temperature", 0.5), ("x" + text(rng), anything(rng))]
    if rng.random() < 0.5:
        rng.shuffle(found)
    if rng.random() < 0.05:
        found.append(rng.choice(found))
    return found


def body(rng: random.Random, spell_keys: bool = False) -> bytes:
    """One request body; top-level keys are spelled plainly unless spell_keys."""
    raw = space(rng) + encode(rng, tuple(fields(rng)), spell_keys) + space(rng)
    return raw.encode("utf-8", "surrogatepass")
