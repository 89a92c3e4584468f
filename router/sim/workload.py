"""The built-in workload: seeded multi-turn chats and agent sessions, fitted to public traces.

Three profiles, each fitted to the published statistics of one trace (the table is in
docs/workloads.md and a test keeps it true):

  chat    a service desk: one policy document heads every prompt (tau-bench airline)
  agent   short coding agents with one shared system prompt (mini-swe-agent)
  coding  long coding-agent sessions with shared tools and system prompts (Claude Code sessions)

Prompts are block ids, as in the traces, so that the same players, tests and statistics serve both.
`text_of` and friends turn ids into bytes: 4 bytes a token, equal ids give equal bytes.
"""

from __future__ import annotations

import msgspec

from warmlane.router.sim.chance import Chance
from warmlane.router.sim.tokens import TOKEN_BYTES, words
from warmlane.router.sim.traces import Session, Turn, Workload


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a kind of session looks like. Pairs are (median, mean) of a log-normal, in tokens.

    systems: sizes of the shared system prompts, the most popular first; popularity falls with
        1 / rank ** skew. topics: how many distinct first messages there are (0: all are new).
    turns: number of requests; first, added: tokens of the first message and of each later one
        beside the previous answer, which the next prompt holds, too; think: seconds.
    limit: the session ends before a prompt exceeds it. gap: seconds between session starts.
    """

    block_size: int
    systems: tuple[int, ...]
    skew: float
    topics: int
    turns: tuple[float, float]
    first: tuple[float, float]
    added: tuple[float, float]
    output: tuple[float, float]
    think: tuple[float, float]
    limit: int
    gap_s: float


PROFILES: dict[str, Profile] = {
    "chat": Profile(
        block_size=16,
        systems=(1536,),
        skew=1.0,
        topics=50,
        turns=(11.0, 12.3),
        first=(60.0, 75.0),
        added=(80.0, 140.0),
        output=(62.0, 81.0),
        think=(1.4, 2.0),
        limit=9_700,
        gap_s=1.0,
    ),
    "agent": Profile(
        block_size=16,
        systems=(1344,),
        skew=1.0,
        topics=0,
        turns=(20.5, 21.5),
        first=(120.0, 200.0),
        added=(45.0, 400.0),
        output=(98.0, 113.0),
        think=(1.1, 1.2),
        limit=37_000,
        gap_s=1.0,
    ),
    "coding": Profile(
        block_size=64,
        systems=(15_400, 16_200, 14_200, 17_400, 12_900, 18_200, 15_900, 13_600, 19_000, 16_700),
        skew=0.8,
        topics=0,
        turns=(80.0, 105.0),
        first=(4_500.0, 13_000.0),
        added=(640.0, 1_900.0),
        output=(206.0, 417.0),
        think=(9.0, 75.0),
        limit=131_072,
        gap_s=19.0,
    ),
}

_SYSTEM_IDS = 1 << 60
_TOPIC_IDS = 1 << 61


def generate(profile: str, sessions: int, seed: int = 1) -> Workload:
    """`sessions` sessions of a profile. The same arguments give the same workload everywhere."""
    shape = PROFILES[profile]
    chance = Chance(seed)
    start_s = 0.0
    out = []
    for number in range(sessions):
        out.append(_session(shape, chance, number, start_s))
        start_s += chance.exponential(shape.gap_s)
    return Workload(
        name=f"builtin-{profile}",
        block_size=shape.block_size,
        sessions=tuple(out),
        note=f"closed loop; built-in generator, seed {seed}",
    )


def _session(shape: Profile, chance: Chance, number: int, start_s: float) -> Session:
    size = shape.block_size
    rank = _rank(len(shape.systems), shape.skew, chance)
    system = shape.systems[rank] // size
    runs = [(_SYSTEM_IDS + (rank << 32), system)]
    length = system * size
    count = max(1, round(_draw(shape.turns, chance)))
    message = max(1, round(_draw(shape.first, chance)))
    if shape.topics:
        topic = chance.below(shape.topics)
        message = 2 * size + 8 * topic % (3 * size)
        topic_blocks = message // size
        runs.append((_TOPIC_IDS + (topic << 32), topic_blocks))
    shared = sum(blocks for _, blocks in runs)
    own = (number + 1) << 32
    turns: list[Turn] = []
    at_s = 0.0
    for index in range(count):
        length += message
        if length > shape.limit:
            break
        think_s = _draw(shape.think, chance) if index else 0.0
        at_s += think_s
        blocks = -(-length // size)
        tail = ((own, blocks - shared),) if blocks > shared else ()
        output = max(1, round(_draw(shape.output, chance)))
        turns.append(Turn(length, output, at_s, think_s, (*runs, *tail)))
        length += output
        message = max(1, round(_draw(shape.added, chance)))
    if not turns:
        # The first message alone is too long: it is cut. Nothing is drawn for it, so that the
        # sessions behind it do not depend on it.
        output = round(shape.output[0])
        length = shape.limit - output
        tail = ((own, -(-length // size) - shared),)
        turns.append(Turn(length, output, 0.0, 0.0, (*runs, *tail)))
    return Session(f"{number}", start_s, tuple(turns))


def _draw(pair: tuple[float, float], chance: Chance) -> float:
    return chance.lognormal(*pair)


def _rank(count: int, skew: float, chance: Chance) -> int:
    weights = [(rank + 1) ** -skew for rank in range(count)]
    point = chance.uniform() * sum(weights)
    for rank, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return rank
    return count - 1


def cut(workload: Workload, *, sessions: int = 0, requests: int = 0, turns: int = 0) -> Workload:
    """The first sessions, at most `turns` of each, `requests` in all; 0 means no limit."""
    kept: list[Session] = []
    left = requests or workload.requests
    for session in workload.sessions[: sessions or None]:
        if left <= 0:
            break
        own = session.turns[: min(turns or len(session.turns), left)]
        left -= len(own)
        kept.append(msgspec.structs.replace(session, turns=own))
    return msgspec.structs.replace(workload, sessions=tuple(kept))


class Texts:
    """Block ids -> prompt bytes, with lengths divided by `shrink`.

    A block of B tokens becomes B / shrink tokens of 4 bytes (at least one), the same bytes for the
    same id, so equal prefixes stay equal and the shape of the sharing is kept while bodies stay
    small. The last, partly filled block is cut to the prompt's length.
    """

    def __init__(self, block_size: int, shrink: float = 1.0) -> None:
        self.tokens_per_block = max(1, round(block_size / shrink))
        self.shrink = block_size / self.tokens_per_block
        self._made: dict[int, bytes] = {}

    def tokens(self, count: int) -> int:
        """Tokens that stand for `count` tokens of the trace, at least one."""
        return max(1, round(count / self.shrink))

    def block(self, block: int) -> bytes:
        text = self._made.get(block)
        if text is None:
            if len(self._made) > 200_000:
                self._made.clear()
            text = words(block.to_bytes(8, "big"), self.tokens_per_block)
            self._made[block] = text
        return text

    def prompt(self, turn: Turn) -> bytes:
        """The whole prompt of a turn."""
        text = b"".join(map(self.block, turn.blocks()))
        return text[: self.tokens(turn.prompt) * TOKEN_BYTES]
