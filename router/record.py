"""What a router remembers of each request it closed, and how nobody can read a prompt out of it.

Floor 4: no files and no clock; `record_file` writes what this hands over.

Kept of a request: when, how long, how many tokens, where, and which earlier requests it shares its
beginning with. The last comes from block keys. Those are plain hashes: whoever guesses a text can
compute them and look whether it was sent. So a key is never written: in its place stands a keyed
BLAKE2b of it, cut to 8 bytes, under 32 random bytes that are made anew for each process, held in
memory alone and never shown. Without them the words of a file are as good as random numbers that
are equal where prompts are equal; no guess can be checked, and two processes' files cannot be
joined. Only each fourth block (512 bytes, or 128 tokens) gets a word. Session ids are treated so as
well. What is left to see is what traffic shows: times, lengths, load, and who shares with whom.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import msgspec

from warmlane.router.core import Router
from warmlane.router.lane import Lane
from warmlane.router.lane_open import Open
from warmlane.router.prefix import PrefixKey
from warmlane.router.record_types import FORMAT, TEXT_STEP, TOKEN_STEP, Entry, Head
from warmlane.router.types import Decision, Outcome


class Closed(msgspec.Struct, frozen=True, gc=False):
    """A request that ended, as it waits: without text; its bare keys never leave memory."""

    decision: Decision
    key: PrefixKey
    session: str
    status: str
    slot: int
    ttft_s: float
    total_s: float
    now: float
    prompt: int | None
    cached: int | None
    output: int | None


class Salt:
    """The secret of one process. secret: at least 16 random bytes."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("a secret of less than 16 bytes can be guessed")
        self._keyed = blake2b(key=secret, digest_size=8)

    def word(self, data: bytes) -> str:
        """16 hexadecimal digits for it."""
        mine = self._keyed.copy()
        mine.update(data)
        return mine.hexdigest()

    def entry(self, closed: Closed, began: float) -> Entry:
        """The line for a request. began: second 0 on the clock of `closed`."""
        decision, key, session = closed.decision, closed.key, closed.session
        is_tokens = key.unit == "tokens"
        step = max(1, (TOKEN_STEP if is_tokens else TEXT_STEP) // key.block) if key.block else 1
        keys = key.keys.tobytes()
        words = [
            self.word(keys[8 * at : 8 * at + 8]) for at in range(step - 1, len(key.keys), step)
        ]
        return Entry(
            at=round(closed.now - closed.total_s - began, 4),
            pool=decision.pool,
            slot=closed.slot,
            prompt=decision.prompt_tokens if closed.prompt is None else closed.prompt,
            size=key.size,
            ttft=round(closed.ttft_s, 5),
            e2e=round(closed.total_s, 5),
            cached=-1 if closed.cached is None else closed.cached,
            output=-1 if closed.output is None else closed.output,
            hit=decision.hit_on(closed.slot),
            told=closed.prompt is not None,
            is_tokens=is_tokens,
            status=closed.status,
            session=self.word(b"session" + session.encode()) if session else "",
            view=decision.view,
            words="".join(words),
        )


class Recorder:
    """Hears of every request that a router closes. put: takes it or returns False, at once."""

    def __init__(self, router: Router, put: Callable[[Closed], bool]) -> None:
        self._router = router
        self._put = put

    def follow(self) -> None:
        """Listen to the pools there are; again after a reload.

        A recorded pool takes the part-by-part path: the compiled one keeps nothing of a request.
        """
        for lane in self._router.lanes.values():
            lane.recorder = self._closed

    def _closed(
        self, opened: Open, slot: int, outcome: Outcome, seconds: float, now: float
    ) -> None:
        closed = Closed(
            opened.decision,
            opened.key,
            opened.request.session,
            outcome.status,
            slot,
            opened.ttft_s,
            seconds,
            now,
            outcome.prompt_tokens,
            outcome.cached_tokens,
            outcome.output_tokens,
        )
        kept = self._put(closed)
        self._router.metrics.count("warmlane_record_requests_total", "kept" if kept else "lost")


def head(router: Router, version: str, began: float, policy: str | None) -> Head:
    """The first line. policy: of a baseline that decides in our place; None: the pools' own."""
    lanes: list[Lane] = list(router.lanes.values())
    return Head(
        warmlane_record=FORMAT,
        version=version,
        began=began,
        policy={each.pool.name: _policy(each) if policy is None else policy for each in lanes},
        replicas={each.pool.name: sum(1 for _ in each.pool) for each in lanes},
        capacities={
            each.pool.name: [each.pool.capacity_tokens(replica) or 0 for replica in each.pool]
            for each in lanes
        },
    )


def _policy(lane: Lane) -> str:
    """ "" for a mix of scorers, which has no name."""
    config = lane.pool.config
    return "" if config.scorers or config.picker else config.policy
