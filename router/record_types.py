"""The lines of a record, JSON: `record` writes them, `sim.record_trace` reads them again."""

from __future__ import annotations

from typing import Final

import msgspec

FORMAT: Final = 1
TEXT_STEP, TOKEN_STEP = 512, 128  # bytes, tokens: what one word stands for


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a file. began: Unix time of second 0. policy: "" where it is not ours.

    replicas, capacities: by slot of each pool, KV tokens (0: unknown).
    """

    warmlane_record: int
    version: str
    began: float
    policy: dict[str, str]
    replicas: dict[str, int]
    capacities: dict[str, list[int]]
    text_step: int = TEXT_STEP
    token_step: int = TOKEN_STEP


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. at: seconds since `began`, of the decision; ttft, e2e: seconds, -1 unknown.

    prompt, cached, output: tokens; told: they are the engine's own words (else prompt is estimated
    and the others are -1). hit: predicted hit tokens. size: of the prompt, in bytes or (is_tokens)
    tokens. words: of its beginnings, 16 hexadecimal digits each. status: of `Outcome`.
    """

    at: float
    pool: str
    slot: int
    prompt: int
    size: int
    ttft: float = -1.0
    e2e: float = -1.0
    cached: int = -1
    output: int = -1
    hit: int = 0
    told: bool = False
    is_tokens: bool = False
    status: str = "ok"
    session: str = ""
    view: str = "none"
    words: str = ""
