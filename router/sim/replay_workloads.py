"""Where the workloads of the lab come from: trace files, built-in profiles, shared prefixes.

A source is made for a seed. Built-in workloads are drawn anew for each seed; of a trace the seed
changes what the trace leaves open (starts of sessions, places within a batch of time stamps).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from warmlane.router.sim.chance import Chance
from warmlane.router.sim.copies import repeat
from warmlane.router.sim.traces import Session, TraceError, Turn, Workload, load
from warmlane.router.sim.workload import PROFILES, cut, generate

BLOCK_TOKENS = 16


class SharedPrefix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Groups of prompts with one system prompt each, in the words of inference-perf.

    groups, prompts: num_groups, num_prompts_per_group; each prompt is its own question.
    system, question, output: lengths in tokens, the same for all. rate: arrivals a second,
    Poisson, prompts in random order, each asked once a round. rounds: how often all are asked.
    """

    groups: int = 150
    prompts: int = 5
    system: int = 6000
    question: int = 1200
    output: int = 1000
    rate: float = 10.0
    rounds: int = 1


# Parameters as published: llm-d's benchmark of precise prefix routing (150 x 5), the examples of
# inference-perf and SGLang's generated-shared-prefix (64 x 16), vLLM's prefix_repetition (10).
SHARED: dict[str, SharedPrefix] = {
    "shared-llm-d": SharedPrefix(),
    "shared-sglang": SharedPrefix(groups=64, prompts=16, system=2048, question=128, output=256),
    "shared-vllm": SharedPrefix(groups=10, prompts=100, system=256, question=256, output=128),
}
BUILT_IN = (*PROFILES, *SHARED)


def shared_prefix(shape: SharedPrefix, seed: int, name: str = "shared-prefix") -> Workload:
    """Open loop. The same arguments give the same workload everywhere."""
    chance = Chance(seed)
    system, length = shape.system // BLOCK_TOKENS, shape.system + shape.question
    tail = -(-length // BLOCK_TOKENS) - system
    sessions: list[Session] = []
    at_s = 0.0
    for _ in range(shape.rounds):
        order = list(range(shape.groups * shape.prompts))
        chance.shuffle(order)
        for number in order:
            group = number // shape.prompts
            runs = ((1 << 60) + (group << 32), system), ((number + 1) << 32, tail)
            turn = Turn(length, shape.output, 0.0, 0.0, tuple(run for run in runs if run[1]))
            sessions.append(Session(f"{len(sessions)}", at_s, (turn,)))
            at_s += chance.exponential(1.0 / shape.rate)
    note = (
        f"open loop; {shape.groups} groups x {shape.prompts} prompts, {shape.system} + "
        f"{shape.question} tokens, {shape.output} out, {shape.rate:g}/s, seed {seed}"
    )
    return Workload(name=name, block_size=BLOCK_TOKENS, sessions=tuple(sessions), note=note)


def parse_shared(text: str) -> SharedPrefix:
    """`shared-prefix[:name=value,...]` or a name of SHARED with the same tail. TraceError."""
    name, _, tail = text.partition(":")
    shape = SHARED.get(name, SharedPrefix())
    given: dict[str, str] = {}
    for pair in filter(None, tail.split(",")):
        field, _, value = pair.partition("=")
        given[field.strip()] = value.strip()
    try:
        made = msgspec.convert(msgspec.structs.asdict(shape) | given, SharedPrefix, strict=False)
    except msgspec.ValidationError as error:
        raise TraceError(f"{text}: {error}") from None
    least = {"groups": 1, "prompts": 1, "system": 0, "question": 1, "output": 1, "rounds": 1}
    for field, low in least.items():
        if not low <= getattr(made, field) <= 10_000_000:
            raise TraceError(f"{text}: {field}: must be {low} to 10000000")
    if made.groups * made.prompts * made.rounds > 10_000_000 or not 0 < made.rate < 1e6:
        raise TraceError(f"{text}: at most 10 million prompts, rate above 0")
    return made


def workload(
    name: str, *, kind: str = "auto", seed: int = 1, sessions: int = 0, copies: int = 1
) -> Workload:
    """A built-in workload by its name, else the trace in the file of that name. TraceError.

    sessions: the first ones only; for the session profiles how many are drawn (0: 200). copies:
    all of that so many times, one after another (`copies.repeat`).
    """
    return repeat(_workload(name, kind, seed, sessions), copies, seed)


def _workload(name: str, kind: str, seed: int, sessions: int) -> Workload:
    head = name.partition(":")[0]
    if head == "shared-prefix" or head in SHARED:
        return cut(shared_prefix(parse_shared(name), seed, head), sessions=sessions)
    if name in PROFILES:
        return generate(name, sessions or 200, seed)
    if not Path(name).exists():
        known = ", ".join((*BUILT_IN, "shared-prefix:groups=...,..."))
        raise TraceError(f"{name}: no such file, and no built-in workload ({known})")
    found = cut(load(Path(name), seed=seed, kind=kind), sessions=sessions)
    if not found.requests:
        raise TraceError(f"{name}: no requests in it")
    return found


def window(source: Workload, low: float, high: float) -> Workload:
    """Sessions that start in this part (0..1) of the time between the first and the last start."""
    starts = [session.start_s for session in source.sessions]
    first, span = min(starts), max(starts) - min(starts)
    begin, end = first + low * span, first + high * span
    kept = [
        session
        for session in source.sessions
        if begin <= session.start_s < end or (high >= 1.0 and session.start_s == end)
    ]
    return msgspec.structs.replace(source, sessions=tuple(kept))
