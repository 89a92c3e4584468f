"""Text -> token ids, with the ids of every piece between special tokens remembered.

A chat grows by a message at a time, and special tokens (`<|im_end|>` and the like) cut it: a
tokenizer never merges across them, so the ids of a piece do not depend on its neighbours. A
repeated turn then costs a look-up per message instead of a full encode (47 ms for 64 KB with the
plain library). Whether that holds for a tokenizer is checked when it is loaded, on the probe texts
of `token_jobs`; where it does not hold, texts are encoded whole.

Floor 5: no clock, no event loop. Encoders are used by worker threads; the memory is locked, the
encoding itself is not.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Final, Protocol

# What a remembered piece costs besides its text and ids: two objects, a tuple and a dict entry.
_ENTRY_BYTES: Final = 280


def packed(ids: Sequence[int]) -> bytes:
    """Token ids as native uint32."""
    return array("I", ids).tobytes()


class Backend(Protocol):
    """A tokenizer library, as far as it is needed here."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without the tokens that a model wants around a prompt."""
        ...

    def around(self) -> tuple[list[int], list[int]]:
        """The tokens that `add_special_tokens` puts before and behind a prompt."""
        ...

    def cutters(self) -> list[str] | None:
        """Tokens that always cut a text; None: pieces of this tokenizer are not independent."""
        ...


class Encoder:
    """A backend with the memory of pieces.

    max_bytes: size of the memory; the pieces used longest ago go first. 0: none.
    """

    def __init__(self, backend: Backend, max_bytes: int, probes: Iterable[str] = ()) -> None:
        self._backend = backend
        self._lock = Lock()
        self._known: OrderedDict[tuple[bool, str], bytes] = OrderedDict()
        self._max_bytes = max_bytes
        self.bytes_used = 0
        self.hits = 0
        self.misses = 0
        before, behind = backend.around()
        self._before, self._behind = packed(before), packed(behind)
        cutters = backend.cutters() if max_bytes > 0 else None
        self._anchor = ""
        self._cut: re.Pattern[str] | None = None
        if cutters:
            # Longest first: a tokenizer takes the leftmost and there the longest.
            ordered = sorted(cutters, key=len, reverse=True)
            self._anchor = ordered[-1]
            self._cut = re.compile("(" + "|".join(map(re.escape, ordered)) + ")")
            self._ids = {
                text: packed(ids)
                for text, ids in zip(ordered, backend.encode(ordered), strict=True)
            }
            if not all(self.encode(text) == self.encode_whole(text) for text in probes):
                self._cut = None
            self.forget()

    @property
    def remembers(self) -> bool:
        """Are pieces remembered, or is every text encoded whole?"""
        return self._cut is not None

    def encode(self, text: str, *, around: bool = False) -> bytes:
        """Token ids as native uint32; around: with the tokens a model wants around a prompt."""
        ids = self.encode_whole(text) if self._cut is None else self._by_pieces(self._cut, text)
        return self._before + ids + self._behind if around else ids

    def encode_whole(self, text: str) -> bytes:
        """The same without the memory."""
        return packed(self._backend.encode([text])[0])

    def safe_start(self, text: str) -> str:
        """The text up to its last special token, whose ids no further text can change."""
        if self._cut is None:
            return ""
        end = 0
        for found in self._cut.finditer(text):
            end = found.end()
        return text[:end]

    def forget(self) -> None:
        """Empty the memory."""
        with self._lock:
            self._known.clear()
            self.bytes_used = self.hits = self.misses = 0

    def _by_pieces(self, cut: re.Pattern[str], text: str) -> bytes:
        pieces = cut.split(text)  # text, special, text, special, ..., text
        out: list[bytes] = []
        missing: list[tuple[int, tuple[bool, str]]] = []
        with self._lock:
            for number, piece in enumerate(pieces):
                if number & 1:
                    out.append(self._ids[piece])
                    continue
                if not piece:
                    out.append(b"")
                    continue
                key = (number == 0, piece)
                ids = self._known.get(key)
                if ids is None:
                    missing.append((number, key))
                    out.append(b"")
                else:
                    self._known.move_to_end(key)
                    out.append(ids)
            self.hits += len(pieces) // 2 + 1 - len(missing)
            self.misses += len(missing)
        if missing:
            self._encode_missing(missing, out)
        return b"".join(out)

    def _encode_missing(
        self, missing: list[tuple[int, tuple[bool, str]]], out: list[bytes]
    ) -> None:
        # A special token stands before every piece but the first, and some tokenizers treat the
        # very start of a text in their own way: so one is put there, and its id is dropped.
        texts = [piece if first else self._anchor + piece for _, (first, piece) in missing]
        found = self._backend.encode(texts)
        skip = len(self._ids[self._anchor])
        with self._lock:
            for (number, key), ids in zip(missing, found, strict=True):
                found_ids = packed(ids) if key[0] else packed(ids)[skip:]
                out[number] = found_ids
                self._remember(key, found_ids)

    def _remember(self, key: tuple[bool, str], ids: bytes) -> None:
        if key in self._known:  # another thread was quicker
            return
        size = _size(key, ids)
        if size > self._max_bytes:
            return
        self._known[key] = ids
        self.bytes_used += size
        while self.bytes_used > self._max_bytes:
            old, gone = self._known.popitem(last=False)
            self.bytes_used -= _size(old, gone)


def _size(key: tuple[bool, str], ids: bytes) -> int:
    # A str takes 1, 2 or 4 bytes a character; most prompts are in the first two classes.
    text = key[1]
    return _ENTRY_BYTES + len(text) * (1 if text.isascii() else 4) + len(ids)
