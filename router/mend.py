"""The first bytes of a request body -> a whole JSON object of what they tell. Floor 3.

For a gateway that shows the start of a body and not the rest of it: what is open is closed where
it was cut, and what cannot be told is left out: a key without its value, half a number, half an
escape, half a character. A string is cut short only where its start means something by itself:
inside of an array or object, as in messages, and as one of `_TEXTS`; half a model's name is not a
name.

Bounded by `most` bytes and `_STEPS` steps; the bytes beyond are not looked at. Cost: 0.8 us for a
string, number or mark of JSON: 0.4 ms for 16 KB of short messages, 4 ms at most.
"""

from __future__ import annotations

import re
from typing import Final

# One step: a string, one that the cut left open, punctuation, or a number or word.
_STEP: Final = re.compile(
    rb"[\s]*+(?:"
    rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")'
    rb'|("[^"\\]*+(?:\\.[^"\\]*+)*+\\?)'
    rb"|([\[\]{},:])"
    rb'|([^\s"\[\]{},:]++))',
    re.DOTALL,
)
_STEPS: Final = 8192
_CLOSERS: Final = {0x7B: b"}", 0x5B: b"]"}
# Top-level members whose value may be cut short.
_TEXTS: Final = frozenset((b'"prompt"', b'"input"', b'"system"', b'"instructions"'))
# An escape that the cut may have gone through, from its backslash on; of a pair of surrogates
# both halves.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[0-9a-fA-F]{0,3})?\Z"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u?[0-9a-fA-F]{0,3})?\Z"
)


def mended(part: bytes, most: int = 65_536) -> tuple[bytes, int] | None:
    """(JSON, how many bytes of `part` it begins with), or None where no object begins.

    A `part` that is a whole object already comes back as it is.
    """
    text = part if len(part) <= most else part[:most]
    stack = bytearray()  # open brackets
    at = kept = 0  # behind the last step, and behind what can stay
    key, is_key = b"", False  # the last one at the top level; the next string is one
    for _ in range(_STEPS):
        step = _STEP.match(text, at)
        if step is None or (not stack and step[3] != b"{"):
            break
        at = step.end()
        whole, cut, mark, word = step.groups()
        if mark in (b"{", b"["):
            stack += mark
            is_key, kept = mark == b"{", at
        elif mark in (b"}", b"]"):
            stack.pop()
            is_key, kept = False, at
            if not stack:
                return part, len(part)
        elif mark is not None:
            is_key = mark == b"," and stack[-1] == 0x7B
        elif is_key:
            if whole is not None and len(stack) == 1:
                key = whole
        elif whole is not None or (word is not None and at < len(text)):
            kept = at
        elif cut is not None and (len(stack) > 1 or key in _TEXTS):
            kept = _end_of(text, at)
            return text[:kept] + b'"' + _closed(stack), kept
    if not kept:
        return None
    return text[:kept] + _closed(stack), kept


def _closed(stack: bytearray) -> bytes:
    return b"".join([_CLOSERS[mark] for mark in reversed(stack)])


def _end_of(text: bytes, end: int) -> int:
    """Where an open string can end: before half an escape, and before half a character."""
    tail = text[max(0, end - 12) : end]
    # A backslash that is escaped itself begins nothing: runs of them are counted from the front.
    found = _ESCAPE.search(tail)
    while found is not None:
        run = 0
        place = end - len(tail) + found.start()
        while place - run > 0 and text[place - run - 1] == 0x5C:
            run += 1
        if run % 2 == 0:
            return place
        found = _ESCAPE.search(tail, found.start() + 1)
    back = 1
    while back <= 3 and back <= end and text[end - back] & 0xC0 == 0x80:
        back += 1
    lead = text[end - back] if back <= end else 0
    width = 2 if lead >> 5 == 6 else 3 if lead >> 4 == 14 else 4 if lead >> 3 == 30 else 1
    return end - back if width > back else end
