"""Loader for the public Qwen-Bailian usage traces: chats whose requests name the one before.

One JSON object a request: `chat_id`, `parent_chat_id` (-1: a chat begins), `timestamp` in seconds,
`input_length` and `output_length` in tokens, `hash_ids` of blocks of 16 tokens, where equal ids
mean equal text after an equal past (a last block that is not full may be missing); `type` and
`turn` are not needed. A chat whose beginning came before the trace begins with its first request
here.

The end of an answer is not recorded. The client's think time is what the gap to the previous
request of the chat leaves when the answer took `ANSWER_TOKEN_S` a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from warmlane.router.sim.trace_types import Session, TraceError, Turn, Workload, compress

BLOCK_TOKENS: Final = 16
ANSWER_TOKEN_S: Final = 0.03  # a usual pace of chat models on one node
_TAILS: Final = 1 << 61  # names of last blocks that have none
_NOTE: Final = "closed loop; think times are gaps between requests less 30 ms a token answered"


def trace(rows: Iterable[Mapping[str, Any]], name: str) -> Workload:
    """Sessions in the order of their starts. TraceError: a request that cannot be."""
    chat_of: dict[int, int] = {}  # request -> the request that its chat began with
    chats: dict[int, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(sorted(rows, key=lambda each: float(each["timestamp"])), 1):
        own, parent = int(row["chat_id"]), int(row["parent_chat_id"])
        if len(row["hash_ids"]) < int(row["input_length"]) // BLOCK_TOKENS:
            raise TraceError(
                f"{name}: request {number} by time, chat_id {own}: {len(row['hash_ids'])} blocks "
                f"of {BLOCK_TOKENS} tokens for a prompt of {row['input_length']}"
            )
        first = chat_of[own] = chat_of.get(parent, own)
        chats.setdefault(first, []).append(row)
    sessions = [_session(first, turns) for first, turns in chats.items()]
    sessions.sort(key=lambda session: session.start_s)
    return Workload(name=name, block_size=BLOCK_TOKENS, sessions=tuple(sessions), note=_NOTE)


def _session(first: int, rows: list[Mapping[str, Any]]) -> Session:
    start_s = before_s = float(rows[0]["timestamp"])
    answered_s, turns = 0.0, list[Turn]()
    for row in rows:
        at_s, output = float(row["timestamp"]), max(1, int(row["output_length"]))
        think_s = max(0.0, at_s - before_s - answered_s) if turns else 0.0
        prompt, ids = max(1, int(row["input_length"])), list(row["hash_ids"])
        if len(ids) * BLOCK_TOKENS < prompt:
            ids.append(_TAILS + int(row["chat_id"]))
        turns.append(Turn(prompt, output, at_s - start_s, think_s, compress(ids)))
        before_s, answered_s = at_s, output * ANSWER_TOKEN_S
    return Session(str(first), start_s, tuple(turns))
