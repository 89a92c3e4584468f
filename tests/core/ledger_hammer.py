"""One of several processes that write one ledger's columns: python ledger_hammer.py FILE ROUNDS.

A program of its own, and a mapped file: a spawned child of the test could not import the test.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

from warmlane._core.ledger import Ledger

SLOTS = 2
BOUNDS = ((0, 4, "i"), (4, 12, "d"), (12, 20, "d"), (20, 24, "i"))  # bytes a slot, format


def views_of(view: memoryview, slots: int) -> tuple[memoryview[Any], ...]:
    """The four columns of a block of 24 bytes a slot."""
    pieces = ((view[start * slots : end * slots], code) for start, end, code in BOUNDS)
    return tuple(piece.cast(code) for piece, code in pieces)  # type: ignore[call-overload]


def hammer(path: Path, rounds: int) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        columns = views_of(memoryview(memory), SLOTS)
        book = Ledger(SLOTS, 8, columns)
        for at in range(rounds):
            ticket = book.open(at & 1, 3, 5, 0.0)
            book.first_token(ticket, 0.0)
            book.close(ticket, 0.0)
        book.open(1, 7, 9, 0.0)
        del book
        for column in columns:
            column.release()


if __name__ == "__main__":
    hammer(Path(sys.argv[1]), int(sys.argv[2]))
