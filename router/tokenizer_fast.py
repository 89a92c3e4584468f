"""The `fastokens` library as a backend, where it is proven equal to `tokenizers` at start. Floor 5.

It encodes 20 to 60 times as fast and frees the interpreter while it does; but it is another
implementation of the same files, so it is believed only after every text of a corpus gave the same
ids: the probes, runs of blanks, digits and line ends, a sample of every script in Unicode, and
source code of the standard library. The check takes about a second for each tokenizer.

Optional (`pip install 'warmlane[fast]'`): without it, or after a difference, `tokenizers` encodes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

try:
    import fastokens
except ImportError:
    fastokens = None

from warmlane.router.encoding import Backend
from warmlane.router.token_jobs import TEXTS

log = logging.getLogger("warmlane.tokenize")

_CODE_BYTES: Final = 60_000  # of each source file of the corpus
_SOURCES: Final = (json.__file__, logging.__file__)
_PLANES: Final = (*range(0x20, 0x3000), *range(0x3000, 0x1_F000, 7), *range(0x1_F000, 0x1_FB00))
_RUN: Final = 64  # characters of one text


class FastBackend:
    """`encoding.Backend` that encodes by `fastokens`; what else it knows is the other library's.

    Raises ValueError: that library cannot read this tokenizer.
    """

    def __init__(self, file: Path, truth: Backend) -> None:
        if fastokens is None:
            raise ValueError("fastokens is not installed")
        try:
            self._tokenizer = fastokens.Tokenizer.from_file(str(file))
        except Exception as error:  # it raises nothing more precise
            raise ValueError(f"fastokens cannot read it: {error}") from error
        self._truth = truth

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encode = self._tokenizer.encode
        return [encode(text, add_special_tokens=False).ids for text in texts]

    def around(self) -> tuple[list[int], list[int]]:
        return self._truth.around()

    def cutters(self) -> list[str] | None:
        return self._truth.cutters()


def faster(file: Path, truth: Backend) -> Backend:
    """The fast backend where it is there and proven, else the given one; one log line says why."""
    if fastokens is None:
        return truth
    try:
        made = FastBackend(file, truth)
        different = unequal(made, truth)
        if not different:
            log.info("event=fast_tokenizer file=%s state=on", file)
            return made
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        different = str(error) or type(error).__name__
    log.warning('event=fast_tokenizer file=%s state=off why="%s"', file, different)
    return truth


def unequal(one: Backend, other: Backend) -> str:
    """What of the corpus two backends encode differently; "" when nothing is."""
    for kind, texts in corpus(other.cutters() or ()):
        for text, left, right in zip(texts, one.encode(texts), other.encode(texts), strict=True):
            if left != right:
                return f"{kind}: a text of {len(text)} characters has other ids"
    return ""


def corpus(specials: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Texts by kind."""
    yield "probes", list(TEXTS)
    blanks = (" ", "\n", "\t", "\r\n", " \n")
    yield "blanks", [f"a{run * n}b" for run in blanks for n in range(1, 40)]
    yield "digits", ["x" + "1234567890" * (n // 10) + "1234567890"[: n % 10] for n in range(40)]
    letters = [chr(code) for code in _PLANES if not 0xD800 <= code < 0xE000]
    runs = ["".join(letters[n : n + _RUN]) for n in range(0, len(letters), _RUN)]
    yield "scripts", [*runs, *(" ".join(run) for run in runs)]
    yield "specials", [f"{left} a{right}b\n{left}" for left in specials for right in specials[:4]]
    for source in _SOURCES:
        text = Path(source).read_text(encoding="utf-8")[:_CODE_BYTES]
        yield "code", [text, *text.splitlines()]
