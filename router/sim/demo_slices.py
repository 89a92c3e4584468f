"""Which part of which workload the main job plays, and how: for two cores and half a minute."""

from __future__ import annotations

from pathlib import Path

import msgspec

from warmlane.router.sim.player import Play
from warmlane.router.sim.traces import TraceError, Workload, load
from warmlane.router.sim.workload import cut, generate

MODEL = "demo"


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """A cut of a workload: `sessions` after the first `skip`, at most `turns` of each and
    `requests` in all; 0 takes all.

    shrink: prompts that many times shorter over HTTP, each token of a replica standing for as many
    real ones; output_shrink: answers that many times shorter. kv_tokens: KV cache of one replica
    in real tokens, 0 for the GPU preset's own.
    """

    skip: int = 0
    sessions: int = 0
    requests: int = 0
    turns: int = 0
    chat: bool = False
    shrink: float = 1.0
    output_shrink: float = 1.0
    speed: float = 10.0
    rate: float = 1.0
    think_cap_s: float = 4.0
    kv_tokens: int = 0

    def play(self) -> Play:
        return Play(
            model=MODEL,
            chat=self.chat,
            speed=self.speed,
            shrink=self.shrink,
            output_shrink=self.output_shrink,
            rate=self.rate,
            think_cap_s=self.think_cap_s,
        )


# By the start of the file's name; the first that is found is played when no file is named.
SLICES: dict[str, Slice] = {
    "agentic": Slice(
        sessions=18, turns=12, shrink=16, output_shrink=4, speed=12, rate=16, think_cap_s=4
    ),
    # late in the trace, where documents of the first part come back
    "mooncake_synthetic": Slice(
        skip=3000, requests=400, shrink=16, output_shrink=2, speed=10, rate=1.3
    ),
    "mooncake_conversation": Slice(requests=500, shrink=16, output_shrink=4, speed=12, rate=1.5),
    "taubench": Slice(
        sessions=60, turns=10, shrink=2, output_shrink=2, speed=5, rate=2, think_cap_s=3
    ),
    "agent_miniswe": Slice(shrink=4, output_shrink=2, speed=3, rate=2, think_cap_s=3),
    "azure_llm": Slice(requests=500, shrink=4, output_shrink=4, speed=8, rate=2),
    "servegen": Slice(requests=500, shrink=4, output_shrink=8, speed=8, rate=0.15),
}

BUILTIN_PROFILE = "coding"
BUILTIN = Slice(
    sessions=20, turns=12, chat=True, shrink=16, output_shrink=4, speed=12, rate=12, think_cap_s=4
)
SMALLEST = 8  # fewest sessions or requests of a part


def chosen(
    trace: Path | None, folder: Path | None, *, builtin: bool, seed: int, part: float = 1.0
) -> tuple[Workload, Slice]:
    """The workload and its slice: the named trace, else one of `folder`, else the built-in one.

    part: share of the slice's sessions and requests to play. TraceError: the trace cannot be read.
    """
    if trace is None and folder is not None and not builtin:
        found = (path for prefix in SLICES for path in sorted(folder.glob(f"{prefix}*")))
        trace = next(found, None)
    if trace is None or builtin:
        piece = _part(BUILTIN, part)
        workload = generate(BUILTIN_PROFILE, piece.sessions, seed)
        return cut(workload, turns=piece.turns), piece
    for prefix, piece in SLICES.items():
        if trace.name.startswith(prefix):
            piece = _part(piece, part)
            whole = load(trace, seed=seed)
            rest = msgspec.structs.replace(whole, sessions=whole.sessions[piece.skip :])
            workload = cut(
                rest,
                sessions=piece.sessions,
                requests=piece.requests,
                turns=piece.turns,
            )
            return workload, piece
    raise TraceError(f"{trace}: unknown trace; the name starts with one of {', '.join(SLICES)}")


def _part(piece: Slice, part: float) -> Slice:
    def scaled(count: int) -> int:
        return max(SMALLEST, round(count * part)) if count else 0

    return msgspec.structs.replace(
        piece, sessions=scaled(piece.sessions), requests=scaled(piece.requests)
    )
