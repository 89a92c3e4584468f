"""Reads what `--record` wrote: as a workload for the lab, and as measurements to compare with.

A word of the record stands for 512 bytes of text or 128 tokens of a prompt and all before them. The
lab counts in blocks of 128 tokens; where prompts are text, blocks become words by the mean bytes a
token of the whole record, the same for all prompts, so that what was shared stays shared. A block
that reaches beyond a prompt's last word is its own.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from warmlane.router.record_types import Entry, Head
from warmlane.router.sim.trace_types import Runs, Session, TraceError, Turn, Workload, compress

BLOCK: Final = 128  # tokens
_WORD: Final = 16  # hexadecimal digits
_OWN: Final = 1 << 60  # ids of blocks that nobody shares


class Recorded(msgspec.Struct, frozen=True):
    """A whole record. lines: in order of their times."""

    head: Head
    lines: list[Entry]


def read(path: Path) -> Recorded:
    """The record in a file, plain or gzip; one that was cut off is read as far as it goes.

    TraceError: it is no record.
    """
    head: Head | None = None
    lines: list[Entry] = []
    decode = msgspec.json.Decoder(Entry).decode
    for number, raw in enumerate(_raw_lines(path), 1):
        try:
            if raw.startswith(b'{"warmlane_record"'):
                head = msgspec.json.decode(raw, type=Head)
            else:
                lines.append(decode(raw))
        except msgspec.MsgspecError as error:
            if raw.endswith(b"\n"):
                raise TraceError(f"{path}: line {number}: {error}") from None
    if head is None:
        raise TraceError(f"{path}: not a record: its first line names no warmlane_record")
    if head.warmlane_record != 1:
        raise TraceError(f"{path}: a record of format {head.warmlane_record}: a newer warmlane's")
    return Recorded(head, sorted(lines, key=lambda line: line.at))


def is_record(path: Path) -> bool:
    """By its first line."""
    try:
        return next(_raw_lines(path), b"").startswith(b'{"warmlane_record"')
    except OSError:
        return False


def _raw_lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield from file
        except EOFError:
            return  # still being written, or cut off: what there is counts


def answered(recorded: Recorded) -> list[Entry]:
    """The requests that were answered whole, of the pool that had most of them."""
    good = [
        line
        for line in recorded.lines
        if line.status == "ok" and line.ttft >= 0 and line.e2e >= line.ttft and line.prompt > 0
    ]
    pools = [line.pool for line in good]
    main = max(set(pools), key=lambda name: (pools.count(name), name), default="")
    return [line for line in good if line.pool == main]


def trace(recorded: Recorded, name: str, *, open_loop: bool = False) -> Workload:
    """The requests as sessions; open_loop: each request by itself, at the time it came.

    A session is one by its id, as long as its requests follow each other; other requests are
    sessions of one turn.
    """
    runs = _Blocks(recorded)
    groups: dict[str, list[Entry]] = {}
    for number, line in enumerate(answered(recorded)):
        last = groups.get(line.session)
        apart = open_loop or not line.session or (last and line.at < last[-1].at + last[-1].e2e)
        groups.setdefault(f"request {number}" if apart else line.session, []).append(line)
    sessions = []
    for key, lines in groups.items():
        turns, end = [], lines[0].at
        for line in lines:
            think_s, end = max(0.0, line.at - end), line.at + line.e2e
            at_s = line.at - lines[0].at
            turns.append(Turn(line.prompt, max(1, line.output), at_s, think_s, runs.of(line)))
        sessions.append(Session(key, lines[0].at, tuple(turns)))
    sessions.sort(key=lambda session: session.start_s)
    note = "recorded; " + ("each request at its time" if open_loop else "sessions by their ids")
    return Workload(name=name, block_size=BLOCK, sessions=tuple(sessions), note=note)


class _Blocks:
    """Words to block ids."""

    def __init__(self, recorded: Recorded) -> None:
        head = recorded.head
        texts = [line for line in recorded.lines if line.told and not line.is_tokens and line.size]
        tokens = sum(line.prompt for line in texts)
        ratio = sum(line.size for line in texts) / tokens if tokens else 4.0
        # Words that one block of the lab covers.
        self._text = BLOCK * ratio / max(1, head.text_step)
        self._token = BLOCK / max(1, head.token_step)
        self._ids: dict[tuple[str, int], int] = {}
        self._fresh = count(1)
        self._own = count(_OWN)

    def of(self, line: Entry) -> Runs:
        """The prompt's blocks, the last one perhaps partly filled."""
        each = self._token if line.is_tokens else self._text
        known = len(line.words) // _WORD
        return compress(self._numbers(line, each, known))

    def _numbers(self, line: Entry, each: float, known: int) -> Iterable[int]:
        for block in range(-(-line.prompt // BLOCK)):
            word = int((block + 1) * each)
            if not 1 <= word <= known:
                yield next(self._own)
                continue
            key = line.words[(word - 1) * _WORD : word * _WORD], block
            found = self._ids.get(key)
            if found is None:
                found = self._ids[key] = next(self._fresh)
            yield found
