"""Loaders for public request traces; each yields the same Workload of sessions and turns.

A prompt is a list of block ids: equal ids stand for equal text after an equal past, so ids of two
prompts agree exactly on their shared prefix. Ids are made unique per file here. A turn holds its
ids as runs of consecutive numbers, which keeps a coding session of a thousand blocks small.

Formats (the README beside the traces describes them; none of the data is part of this project):
  mooncake_*.jsonl            Mooncake, FAST'25: time stamp, lengths, ids of 512-token blocks
  agentic_*.jsonl             coding-agent sessions ("Weka" traces): 64-token blocks, delta form
  agent_miniswe*, taubench_*  agent trajectories: 16-token blocks, delta form
  azure_llm_*.csv             Azure LLM inference trace: time stamps and lengths, nothing shared
  qwen_*.jsonl                Qwen-Bailian usage traces (bailian_trace): 16-token blocks
  servegen_*.csv              ServeGen client statistics: arrivals and lengths, nothing shared
  record*                     what `--record` of serve and ext-proc wrote (record_trace)
Any of them may be gzip-compressed.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from warmlane.router.sim import bailian_trace, record_trace
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.trace_types import Runs, Session, TraceError, Turn, Workload, compress

__all__ = [
    "LOADERS",
    "Runs",
    "Session",
    "TraceError",
    "Turn",
    "Workload",
    "compress",
    "find_traces",
    "load",
]

MOONCAKE_BATCH_S = 3.0  # its time stamps are rounded down to batches of 3 s


def find_traces(environ: Mapping[str, str], start: Path) -> Path | None:
    """The folder with traces: WARMLANE_TRACES, or shared/traces beside a parent of `start`."""
    named = environ.get("WARMLANE_TRACES")
    if named:
        path = Path(named)
        return path if path.is_dir() else None
    for parent in start.resolve().parents:
        candidate = parent / "shared" / "traces"
        if candidate.is_dir():
            return candidate
    return None


def load(path: Path, *, seed: int = 1, kind: str = "auto") -> Workload:
    """Load a trace. TraceError when its content is not as expected.

    kind: a key of LOADERS; auto: told from the file's name, and else from its first line.
    """
    if kind == "auto":
        kind = next((prefix for prefix in LOADERS if path.name.startswith(prefix)), "")
    try:
        return LOADERS[kind or _sniff(path)](path, seed)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {error}") from None
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: not the expected format: {error!r}") from error


def _sniff(path: Path) -> str:
    """The format by what its first line names. TraceError when no loader knows it."""
    with _open(path) as lines:
        line = lines.readline(1 << 20)
    for word, kind in _MARKS.items():
        if word in line:
            return kind
    raise TraceError(f"{path}: unknown trace; the formats are {', '.join(LOADERS)}")


def _open(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    decode = msgspec.json.Decoder().decode
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = decode(line)
            except msgspec.DecodeError as error:
                raise TraceError(f"{path}:{number}: {error}") from None
            if not isinstance(row, dict):
                raise TraceError(f"{path}:{number}: not an object")
            yield row


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _mooncake(path: Path, seed: int) -> Workload:
    """Every request is a session of its own: the trace has no session ids."""
    chance = Chance(seed)
    sessions = []
    for number, row in enumerate(_rows(path)):
        # the conversation trace comes in batches of 3 s: spread each uniformly over its 3 s
        at_s = row["timestamp"] / 1000.0
        if "conversation" in path.name:
            at_s += MOONCAKE_BATCH_S * chance.uniform()
        turn = Turn(
            row["input_length"], max(1, row["output_length"]), 0.0, 0.0, compress(row["hash_ids"])
        )
        sessions.append(Session(str(number), at_s, (turn,)))
    sessions.sort(key=lambda session: session.start_s)
    note = "open loop; batches of 3 s spread uniformly" if "conversation" in path.name else ""
    return Workload(
        name=_name(path), block_size=512, sessions=tuple(sessions), note=note or "open loop"
    )


class _Delta:
    """Prompts in delta form: keep leading blocks of the previous prompt, then append runs."""

    def __init__(self) -> None:
        self._previous: list[tuple[int, int]] = []

    def turn(
        self,
        row: dict[str, Any],
        think_s: float,
        offset_s: float,
        rename: Callable[[list[tuple[int, int]]], Runs] = tuple,
    ) -> Turn:
        kept: list[tuple[int, int]] = []
        left = row["keep"]
        for first, count in self._previous:
            if left <= 0:
                break
            kept.append((first, min(count, left)))
            left -= count
        if left > 0:
            raise ValueError(f"keep {row['keep']}: the previous prompt is {left} blocks shorter")
        for first, count in row["add"]:
            if kept and kept[-1][0] + kept[-1][1] == first:
                kept[-1] = (kept[-1][0], kept[-1][1] + count)
            else:
                kept.append((first, count))
        self._previous = kept
        at_s = offset_s + row.get("t", 0.0)
        return Turn(row["in"], max(1, row["out"]), at_s, think_s, rename(kept))


MAX_CONTEXT = 131_072  # a coding session stops at its first prompt beyond a 128k context
STARTS_S = 7200.0  # session starts are spread over two hours


def _agentic(path: Path, seed: int) -> Workload:
    """Coding-agent sessions. Ids are local: equal tools and system prompts become shared ids.

    A sub-agent's requests stand where it was called (the parent waits for it), one after another.
    """
    chance = Chance(seed)
    shared: dict[tuple[int, ...], int] = {}
    sessions = []
    for number, row in enumerate(_rows(path)):
        size = row["block_size"]
        tools = row["tool_tokens"] // size
        system = (row["tool_tokens"] + row["system_tokens"]) // size
        parts = (
            (0, tools, _base(shared, (row["tool_tokens"],))),
            (tools, system, _base(shared, (row["tool_tokens"], row["system_tokens"]))),
            (system, 1 << 32, (number + 1) << 32),
        )

        def rename(runs: list[tuple[int, int]], parts: Any = parts) -> Runs:
            """Cut runs where tools and system prompt end; ids number the first prompt from 0."""
            return tuple(
                (base + max(first, low), min(first + count, high) - max(first, low))
                for first, count in runs
                for low, high, base in parts
                if first < high and first + count > low
            )

        turns = list(_agentic_turns(row["requests"], 0.0, rename))
        keep = next((i for i, t in enumerate(turns) if t.prompt > MAX_CONTEXT), len(turns))
        if keep:
            start_s = chance.uniform() * STARTS_S
            sessions.append(Session(row["session"], start_s, tuple(turns[:keep])))
    sessions.sort(key=lambda session: session.start_s)
    note = "closed loop; sessions stop at 128k tokens, starts spread over 2 h"
    return Workload(name=_name(path), block_size=64, sessions=tuple(sessions), note=note)


def _agentic_turns(
    rows: list[dict[str, Any]], offset_s: float, rename: Callable[[list[tuple[int, int]]], Runs]
) -> Iterator[Turn]:
    delta = _Delta()
    for row in rows:
        if "sub" in row:
            yield from _agentic_turns(row["sub"], offset_s + row["t"], rename)
        else:
            yield delta.turn(row, row.get("think") or 0.0, offset_s, rename)


def _base(shared: dict[tuple[int, ...], int], key: tuple[int, ...]) -> int:
    """A range of ids for what sessions with this key share, far from session-local ranges."""
    return (1 << 60) + (shared.setdefault(key, len(shared)) << 32)


def _trajectories(path: Path, seed: int) -> Workload:
    """Agent trajectories whose ids are shared in the file. Starts and thinks where not recorded.

    Without time stamps a think time of 2 s (exponential) and starts at 1 session a second stand in.
    """
    chance = Chance(seed)
    sessions = []
    start_s, timed = 0.0, True
    for row in _rows(path):
        delta = _Delta()
        turns: list[Turn] = []
        previous = 0.0
        for request in row["requests"]:
            timed = "t" in request
            think_s = 0.0
            if timed:
                think_s = max(0.0, request["t"] - previous) if turns else 0.0
                previous = request["t"]
            elif turns:
                think_s = chance.exponential(2.0)
                previous += think_s
                request["t"] = previous
            turns.append(delta.turn(request, think_s, 0.0))
        sessions.append(Session(row["session"], start_s, tuple(turns)))
        start_s += chance.exponential(1.0)
    note = "closed loop; starts at 1 a second"
    if not timed:
        note += ", think times of 2 s (not recorded)"
    return Workload(name=_name(path), block_size=16, sessions=tuple(sessions), note=note)


def _azure(path: Path, seed: int) -> Workload:
    with _open(path) as lines:
        rows = [
            (datetime.fromisoformat(row["TIMESTAMP"][:26]), int(row["ContextTokens"]),
             int(row["GeneratedTokens"]))
            for row in csv.DictReader(lines)
        ]  # fmt: skip
    if not rows:
        raise TraceError(f"{path}: empty")
    first = rows[0][0]
    lengths = [((at - first).total_seconds(), prompt, output) for at, prompt, output in rows]
    return _unshared(path, lengths, 64, "open loop; nothing shared")


def _servegen(path: Path, seed: int) -> Workload:
    """Requests drawn from the clients' rates and length statistics, its busiest 10 minutes."""
    chance = Chance(seed)
    with _open(path) as lines:
        rows = list(csv.DictReader(lines))
    rates: dict[int, float] = {}
    for row in rows:
        window = int(row["window_start_s"])
        rates[window] = rates.get(window, 0.0) + float(row["rate_rps"])
    if not rates:
        raise TraceError(f"{path}: empty")
    busiest = max(rates, key=lambda window: (rates[window], -window))
    lengths = []
    for row in rows:
        begin = int(row["window_start_s"])
        if begin != busiest:
            continue
        if not row["in_mean"] or not row["out_mean"]:
            continue  # a client without a length histogram
        gap, cv = 1.0 / float(row["rate_rps"]), float(row["cv_interarrival"] or 1.0)
        at = chance.gamma(gap, cv)
        while at < 600.0:
            prompt = chance.lognormal(float(row["in_p50"]), float(row["in_mean"]))
            output = chance.lognormal(float(row["out_p50"]), float(row["out_mean"]))
            lengths.append((begin - busiest + at, max(1, int(prompt)), max(1, int(output))))
            at += chance.gamma(gap, cv)
    lengths.sort()
    return _unshared(path, lengths, 64, "open loop; drawn from client statistics, nothing shared")


def _unshared(path: Path, lengths: list[tuple[float, int, int]], size: int, note: str) -> Workload:
    sessions, next_id = [], 0
    for number, (at_s, prompt, output) in enumerate(lengths):
        count = -(-max(1, prompt) // size)
        turn = Turn(max(1, prompt), max(1, output), 0.0, 0.0, ((next_id, count),))
        next_id += count
        sessions.append(Session(str(number), at_s, (turn,)))
    return Workload(name=_name(path), block_size=size, sessions=tuple(sessions), note=note)


def _bailian(path: Path, seed: int) -> Workload:
    del seed  # nothing is left open
    return bailian_trace.trace(_rows(path), _name(path))


def _record(path: Path, seed: int) -> Workload:
    del seed  # nothing is left open
    return record_trace.trace(record_trace.read(path), _name(path))


LOADERS: dict[str, Callable[[Path, int], Workload]] = {
    "mooncake": _mooncake,
    "agentic": _agentic,
    "agent_miniswe": _trajectories,
    "taubench": _trajectories,
    "azure_llm": _azure,
    "servegen": _servegen,
    "qwen": _bailian,
    "record": _record,
}

# What only the first line of one format holds; in this order.
_MARKS = {
    '"warmlane_record"': "record",
    '"parent_chat_id"': "qwen",
    '"hash_ids"': "mooncake",
    '"tool_tokens"': "agentic",
    '"keep"': "agent_miniswe",
    "TIMESTAMP,ContextTokens": "azure_llm",
    "window_start_s": "servegen",
}
