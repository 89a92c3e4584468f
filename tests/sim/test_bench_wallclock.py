"""The lab's half of `bench_wallclock` is the very world that the processes are."""

from __future__ import annotations

import pytest

from benchmarks.bench_wallclock import GPU, SLICES, as_played, as_timed, inverted
from warmlane.router.sim.demo_slices import Slice
from warmlane.router.sim.lab_world import BLOCK_TOKENS
from warmlane.router.sim.server import FakeOptions
from warmlane.router.sim.timing import PRESETS
from warmlane.router.sim.tokens import TOKEN_BYTES
from warmlane.router.sim.workload import Texts, cut, generate

PIECE = Slice(shrink=4, output_shrink=4, speed=4, rate=10, think_cap_s=2)


def test_requests_are_those_of_the_player() -> None:
    made = cut(generate("coding", 6, seed=2), turns=6)
    played = as_played(made, PIECE)
    texts = Texts(made.block_size, PIECE.shrink)
    assert played.block_size == texts.tokens_per_block
    assert played.block_size % BLOCK_TOKENS == 0, "the lab's blocks are no part of it"
    for session, other in zip(made.sessions, played.sessions, strict=True):
        assert other.start_s == pytest.approx(session.start_s / 40)
        for turn, shorter in zip(session.turns, other.turns, strict=True):
            assert shorter.prompt == len(texts.prompt(turn)) // TOKEN_BYTES
            assert shorter.output == max(1, round(turn.output / 4))
            assert shorter.think_s == min(turn.think_s, 2.0) / 4
            assert shorter.runs == turn.runs


def test_replicas_are_those_of_the_fake_engine() -> None:
    own = FakeOptions(gpu=GPU, scale=PIECE.shrink).engine_config()
    timing = as_timed(PRESETS[GPU], PIECE)
    assert timing.kv_tokens // BLOCK_TOKENS == own.blocks
    assert (timing.step_tokens, timing.max_seqs) == (own.max_num_batched_tokens, own.max_num_seqs)
    steps = [(0, 0.0, 1, 900, 1), (2000, 3e6, 0, 0, 1), (300, 1e5, 40, 90_000, 41)]
    for step in steps:
        assert timing.step_s(*step) == pytest.approx(own.timing.step_s(*step) / PIECE.speed)


def test_the_slices_fit() -> None:
    for _, piece in SLICES.values():
        assert 1.0 <= piece.speed <= 10.0 and piece.shrink == piece.output_shrink


def test_order_is_judged_where_the_lab_tells_two_apart() -> None:
    lab = {"a": 1.0, "b": 1.05, "c": 2.0}
    assert inverted({"a": 1.2, "b": 1.0, "c": 3.0}, lab) == []
    assert inverted({"a": 1.0, "b": 2.1, "c": 2.0}, lab) == ["b before c"]
    assert len(inverted({"a": 3.0, "b": 2.0, "c": 1.0}, lab)) == 2
