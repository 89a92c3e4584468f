"""Healing of one event stream, without sockets: a scripted engine with lives, gaps and replays."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Collection
from typing import Any

import msgspec
import pytest

from warmlane._core.hashing import root_key, token_keys
from warmlane._core.kv_events import Intake
from warmlane.router.config import PoolConfig
from warmlane.router.exact import ExactView
from warmlane.router.feeds import kv_events_stream
from warmlane.router.feeds.kv_events_stream import (
    ATTEMPTS,
    QUIET_S,
    RESYNC_S,
    SILENT_S,
    WINDOW,
    Stream,
)
from warmlane.router.pool import Pool
from warmlane.router.types import ReplicaSpec

pack = msgspec.msgpack.encode
SIZE = 4


class Engine:
    """Publishes one-block prompts and removals; keeps its batches for replay."""

    def __init__(self, life: str = "a", buffer: int = 10_000) -> None:
        self.life = life
        self.buffer = buffer
        self.sent: list[bytes] = []
        self.copies: Counter[int] = Counter()  # an engine may hold a block twice

    @property
    def held(self) -> set[int]:
        return set(+self.copies)

    def store(self, prompt: int) -> tuple[int, bytes]:
        self.copies[prompt] += 1
        event = {
            "type": "BlockStored",
            "block_hashes": [self.hash(prompt)],
            "parent_block_hash": None,
            "token_ids": [prompt] * SIZE,
            "block_size": SIZE,
        }
        return self.publish(event)

    def remove(self, prompt: int) -> tuple[int, bytes]:
        self.copies[prompt] -= 1
        return self.publish({"type": "BlockRemoved", "block_hashes": [self.hash(prompt)]})

    def clear(self) -> tuple[int, bytes]:
        self.copies.clear()
        return self.publish({"type": "AllBlocksCleared"})

    def hash(self, prompt: int) -> int:
        return hash((self.life, prompt)) % 2**64

    def publish(self, event: dict[str, Any]) -> tuple[int, bytes]:
        self.sent.append(pack([float(len(self.sent)), [event], 0, self.life]))
        return len(self.sent) - 1, self.sent[-1]

    def replay(self, start: int) -> list[tuple[int, bytes]]:
        first = max(start, len(self.sent) - self.buffer)
        return list(enumerate(self.sent))[first:]


class Listener:
    """A stream and the engine that it listens to."""

    def __init__(self, *, replay: bool = True, engine: Engine | None = None) -> None:
        pool = Pool(PoolConfig(replicas=[], kv_events="auto"))
        self.slot = pool.add(ReplicaSpec(url="http://a:1"), 0.0)
        self.exact = ExactView(pool, 8)
        self.exact.open(self.slot)
        self.engine = engine or Engine()
        self.now = 0.0
        self.stream = Stream(self.exact, self.slot, replay=replay, now=0.0)
        self.stream.connected(0.0)

    def hear(self, *batches: tuple[int, bytes]) -> None:
        for seq, payload in batches:
            self.stream.batch(seq, payload, self.now)
            self.work()

    def work(self) -> None:
        while self.stream.busy:
            self.stream.step(self.now)

    def answer(self, *, leave_out: Collection[int] = (), marker: bool = True) -> int:
        """Answer the replay that is asked for; where it began."""
        start = self.stream.ask
        assert start is not None, "no replay is asked for"
        self.stream.asked(self.now)
        for seq, payload in self.engine.replay(start):
            if seq not in leave_out and self.stream.ask is None:
                self.stream.replayed(seq, payload, self.now)
                self.work()
        if marker and self.stream.ask is None:
            self.stream.ended(self.now)
            self.work()
        return start

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.stream.tick(self.now)

    def knows(self) -> set[int]:
        """Prompts that the exact view has."""
        found = set()
        hits = array("i", [0] * 8)
        for prompt in range(200):
            keys = token_keys(root_key(""), array("I", [prompt] * SIZE), SIZE)
            self.exact.tree.match_one_tier(keys, hits)
            if hits[self.slot]:
                found.add(prompt)
        return found

    @property
    def why(self) -> str | None:
        return self.exact.why(self.slot)

    def is_right(self) -> bool:
        return self.why == "" and self.knows() == self.engine.held


def joined(**options: Any) -> Listener:
    listener = Listener(**options)
    for prompt in range(10):
        listener.engine.store(prompt)
    assert listener.answer() == 0
    assert listener.is_right()
    return listener


def test_a_late_join_replays_from_the_beginning() -> None:
    listener = joined()
    listener.hear(listener.engine.store(50), listener.engine.remove(3))
    assert listener.is_right()
    assert listener.stream.counts == {"replay": 1, "replayed": 1, "batches": 12}


def test_an_idle_engine_is_empty_and_trusted() -> None:
    listener = Listener()
    listener.answer()
    assert listener.is_right()
    listener.hear(listener.engine.store(1))
    assert listener.is_right()


def test_a_new_engine_needs_no_replay() -> None:
    listener = Listener()
    listener.hear(listener.engine.store(1))
    assert listener.is_right() and listener.stream.ask is None


def test_live_batches_wait_for_the_replay() -> None:
    listener = Listener()
    engine = listener.engine
    early = [engine.store(prompt) for prompt in range(5)]
    listener.hear(early[4], engine.remove(0), engine.store(7))
    assert listener.why == "joining"
    listener.answer()  # has them, too
    assert listener.is_right()


def test_a_replay_that_ends_before_the_live_ones_begin_is_asked_again() -> None:
    listener = Listener()
    engine = listener.engine
    for prompt in range(5):
        engine.store(prompt)
    replay = engine.replay(0)
    engine.store(5)
    late = engine.store(6)
    listener.hear(late)
    listener.stream.ask = None
    for seq, payload in replay:
        listener.stream.replayed(seq, payload, 0.0)
    listener.stream.ended(0.0)
    listener.work()
    assert listener.answer() == 4
    assert listener.is_right()


@pytest.mark.parametrize("missed", [1, 7])
def test_a_gap_is_replayed(missed: int) -> None:
    listener = joined()
    for prompt in range(missed):
        listener.engine.remove(prompt)
    listener.hear(listener.engine.store(90))
    assert listener.why == f"{missed} batches were missed"
    assert listener.answer() == 9
    assert listener.is_right()
    assert listener.stream.counts["missed"] == missed


def test_gaps_inside_a_replay_and_a_missing_end() -> None:
    listener = joined()
    for prompt in range(8):
        listener.engine.remove(prompt)
    listener.hear(listener.engine.store(90))
    listener.answer(leave_out={12, 13})
    assert listener.why and listener.answer(leave_out={16}, marker=False) == 11
    assert listener.answer(marker=False) == 15
    listener.wait(QUIET_S + 0.1)
    assert listener.answer() == 18
    assert listener.is_right()
    assert listener.stream.counts["replay_gap"] == 2
    assert listener.stream.counts["replay_no_end"] == 1


def test_a_gap_that_the_replay_does_not_reach_is_relearned() -> None:
    listener = Listener(engine=Engine(buffer=3))
    engine = listener.engine
    listener.hear(*[engine.store(prompt) for prompt in range(10)])
    assert listener.is_right()
    for prompt in range(5):
        engine.remove(prompt)
    listener.hear(engine.store(60))
    assert listener.answer() == 9
    assert listener.why == "its replay does not reach back"
    assert listener.knows() == {60}, "nothing that may be gone"


def test_a_short_buffer_relearns_until_removals_are_known() -> None:
    listener = Listener(engine=Engine(buffer=20))
    engine = listener.engine
    for prompt in range(100):
        engine.store(prompt)
    listener.answer()
    assert listener.why == "its replay does not reach back to its start"
    assert listener.knows() == set(range(80, 100))
    # The engine turns its cache over: first the unknown ones go, then those that are known.
    for turn in range(4 * WINDOW):
        oldest = min(engine.held) if turn < 100 else turn + 200 - 100
        listener.hear(engine.remove(oldest), engine.store(turn + 200))
        listener.wait(0.1)
        if listener.why == "":
            break
    assert listener.why == "", listener.stream.counts
    assert turn > WINDOW - 20
    assert listener.stream.counts["relearned"] == 1


def test_a_clear_ends_relearning() -> None:
    listener = Listener(replay=False)
    engine = listener.engine
    engine.store(1)
    listener.hear(engine.store(2))
    assert listener.why == "joined late: there is no replay socket"
    listener.hear(engine.clear())
    assert listener.is_right()


def test_a_restart_shows_in_a_smaller_number() -> None:
    listener = joined()
    listener.engine = Engine("b")
    listener.hear(listener.engine.store(77))
    assert listener.is_right()
    assert listener.stream.counts["restart"] == 1


def test_a_restart_whose_first_batches_were_missed() -> None:
    listener = joined()
    listener.engine = Engine("b")
    for prompt in range(5):
        listener.engine.store(prompt + 30)
    listener.hear(listener.engine.store(77))
    assert listener.answer() == 0
    assert listener.is_right()


@pytest.mark.parametrize("more", [0, 3, 9, 10, 11, 40])
def test_a_restart_behind_a_lost_connection(more: int) -> None:
    """The new life may have published less, as much, or more than the old one: numbers prove
    nothing, payloads do."""
    listener = joined()
    listener.stream.disconnected()
    assert listener.why == "disconnected"
    listener.engine = Engine("b")
    for prompt in range(more):
        listener.engine.store(prompt + 100)
    listener.stream.connected(0.0)
    listener.hear(listener.engine.store(199))
    asked = [listener.answer(), listener.answer()]
    assert asked == [9, 0]
    assert listener.is_right()
    assert listener.stream.counts["restart"] == 1


def test_a_lost_connection_without_a_restart() -> None:
    listener = joined()
    listener.stream.disconnected()
    listener.engine.store(60)
    listener.stream.connected(0.0)
    assert listener.why == "reconnected"
    listener.answer()
    assert listener.is_right()
    assert "restart" not in listener.stream.counts


def test_without_a_replay_socket_a_gap_is_relearned() -> None:
    listener = Listener(replay=False)
    engine = listener.engine
    listener.hear(engine.store(1), engine.store(2))
    assert listener.is_right()
    engine.remove(1)
    listener.hear(engine.store(3))
    assert listener.why == "1 batches were missed: there is no replay socket"
    assert listener.knows() == {3}, "never what may be gone"
    listener.stream.disconnected()
    listener.stream.connected(0.0)
    assert listener.why == "reconnected: there is no replay socket"
    listener.engine = Engine("b")
    listener.hear(listener.engine.store(5))
    assert listener.is_right()


def test_a_replay_socket_that_never_answers() -> None:
    listener = joined()
    listener.engine.store(60)
    listener.hear(listener.engine.store(61))
    for _ in range(ATTEMPTS):
        listener.stream.asked(listener.now)
        listener.wait(SILENT_S + 0.1)
    assert listener.stream.ask is not None
    listener.wait(1000)  # until it is sent its time does not count
    assert listener.stream.ask is not None
    listener.stream.asked(listener.now)
    listener.wait(SILENT_S + 0.1)
    assert listener.why == "its replay socket does not answer in full"
    assert listener.knows() == set()
    listener.hear(listener.engine.store(62))
    assert listener.knows() == {62}
    listener.wait(RESYNC_S)
    assert listener.answer() == 0
    assert listener.is_right()


def test_an_engine_that_is_not_up_yet_is_waited_for() -> None:
    listener = Listener()
    listener.stream.disconnected()
    for _ in range(50):
        listener.stream.ask = None
        listener.wait(SILENT_S + 0.1)
        assert listener.why == "disconnected"
    listener.stream.connected(listener.now)
    listener.answer()
    assert listener.is_right()


def test_a_broken_batch_is_relearned_and_nobody_else_is_harmed() -> None:
    listener = joined()
    other = listener.exact.pool.add(ReplicaSpec(url="http://b:1"), 0.0)
    listener.exact.open(other)
    bystander = Stream(listener.exact, other, replay=False, now=0.0)
    bystander.connected(0.0)
    bystander.batch(*Engine("c").store(1), 0.0)
    seq, payload = listener.engine.store(60)
    listener.hear((seq, payload[:-20]))
    assert listener.why == "a batch could not be read"
    assert listener.knows() == set()
    assert listener.exact.why(other) == "" and listener.exact.tree.replica_blocks(other) == 1
    listener.hear(listener.engine.store(61), listener.engine.clear(), listener.engine.store(5))
    assert listener.is_right()


def test_removals_of_unknown_blocks_are_no_matter_but_in_number() -> None:
    listener = joined()
    for prompt in range(WINDOW - 1):
        listener.hear(listener.engine.remove(500 + prompt))
    listener.wait(1.0)
    assert listener.is_right()
    listener.hear(listener.engine.remove(999))
    listener.wait(1.0)
    assert listener.why == f"{WINDOW} of {WINDOW} removals are of unknown blocks"
    assert listener.answer() == 0
    assert listener.is_right()


def test_ambiguous_hashes_and_models_without_full_attention_are_not_trusted() -> None:
    listener = joined()
    listener.engine.hash = lambda prompt: 7  # type: ignore[method-assign]
    listener.hear(listener.engine.store(1), listener.engine.store(2))
    listener.wait(1.0)
    assert listener.why == "one of its hashes stands for several blocks"
    window = Listener()
    event = {
        "type": "BlockStored",
        "block_hashes": [1],
        "parent_block_hash": None,
        "token_ids": [1] * SIZE,
        "block_size": SIZE,
        "kv_cache_spec_kind": "sliding_window",
    }
    window.hear(window.engine.publish(event))
    window.wait(1.0)
    window.hear(window.engine.publish(event))
    assert window.why == "none of its KV cache groups is full attention"


def test_what_waits_for_a_replay_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events_stream, "HELD_BATCHES", 20)
    listener = joined()
    listener.engine.store(60)
    for prompt in range(25):
        listener.hear(listener.engine.store(100 + prompt))
    assert listener.stream.counts["held_over"] == 1
    assert listener.why == "more came than could be held for a replay"


def test_long_batches_are_applied_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events_stream, "SLICE_BLOCKS", 3)
    listener = Listener()
    events = [
        {
            "type": "BlockStored",
            "block_hashes": [i],
            "parent_block_hash": None,
            "token_ids": [i] * SIZE,
            "block_size": SIZE,
        }
        for i in range(30)
    ]
    listener.stream.batch(0, pack([1.0, events, 0]), 0.0)
    assert listener.stream.busy and listener.why == "joining"
    listener.engine.copies.update(range(30))
    listener.work()
    assert listener.is_right()


@pytest.mark.parametrize("seed", range(25))
def test_any_mix_of_faults_ends_in_the_truth(seed: int) -> None:
    """Whatever is lost: while trusted the view is the engine's, and it is trusted again at last."""
    source = random.Random(seed)
    listener = Listener(engine=Engine(buffer=source.choice([30, 10_000])))
    trusted = 0
    for turn in range(300):
        engine = listener.engine
        act = source.random()
        if act < 0.02:
            listener.engine = engine = Engine(f"life {turn}", engine.buffer)
            if source.random() < 0.7:
                listener.stream.disconnected()
                for _ in range(source.randrange(4)):
                    engine.store(source.randrange(200))
                listener.stream.connected(listener.now)
        held = sorted(engine.held)
        if act > 0.5 and held:
            batch = engine.remove(source.choice(held))
        elif act > 0.49:
            batch = engine.clear()
        else:
            batch = engine.store(source.randrange(200))
        lost = source.random() < 0.03
        if not lost:
            listener.hear(batch)
        if listener.stream.ask is not None and source.random() < 0.5:
            gone = {source.randrange(400) for _ in range(source.randrange(3))}
            listener.answer(leave_out=gone, marker=source.random() < 0.8)
        listener.wait(source.choice([0.0, 0.1, 2.0]))
        if not lost and listener.why == "":
            trusted += 1
            # A restart without any sign yet is the one thing that nobody can see.
            assert listener.knows() == engine.held, f"seed {seed} turn {turn}"
    listener.hear(listener.engine.clear())
    for _ in range(ATTEMPTS + 2):
        if listener.stream.ask is not None:
            listener.answer()
        listener.wait(SILENT_S + 0.1)
    if listener.stream.counts["replay_failed"] and listener.why:
        listener.wait(RESYNC_S)
        listener.answer()
    assert listener.is_right(), (seed, listener.why, listener.stream.counts)
    assert trusted > 20
    assert isinstance(listener.exact.intake, Intake)
