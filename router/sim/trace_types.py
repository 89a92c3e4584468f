"""What a trace becomes: sessions of turns over numbered blocks. Floor 3, values only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

Runs = tuple[tuple[int, int], ...]  # (first id, count), consecutive ids


class TraceError(ValueError):
    """A trace cannot be read; the message names the file, the line and what is wrong."""


class Turn(msgspec.Struct, frozen=True):
    """One request: prompt and output tokens, recorded time, think time before it, prompt blocks.

    at_s: seconds after the session's start; think_s: how long the client waited after the
    previous answer of the session.
    """

    prompt: int
    output: int
    at_s: float
    think_s: float
    runs: Runs

    def blocks(self) -> Iterator[int]:
        """The ids of the prompt's blocks in order; the last one may be partly filled."""
        for first, count in self.runs:
            yield from range(first, first + count)


class Session(msgspec.Struct, frozen=True):
    """Turns of one client, in order: the next one is sent after the previous answer."""

    name: str
    start_s: float
    turns: tuple[Turn, ...]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions over blocks of `block_size` tokens. note: how it was derived, one line."""

    name: str
    block_size: int
    sessions: tuple[Session, ...]
    note: str = ""

    @property
    def requests(self) -> int:
        return sum(len(session.turns) for session in self.sessions)


def compress(ids: Iterable[int]) -> Runs:
    """Ids -> runs."""
    runs: list[list[int]] = []
    for block in ids:
        if runs and runs[-1][0] + runs[-1][1] == block:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    return tuple((first, count) for first, count in runs)
