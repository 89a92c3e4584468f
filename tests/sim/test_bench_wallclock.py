"""The lab's half of `bench_wallclock` is the very world that the processes are."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from warmlane.router.sim.demo_slices import Slice
from warmlane.router.sim.lab_world import BLOCK_TOKENS
from warmlane.router.sim.server import FakeOptions
from warmlane.router.sim.timing import PRESETS
from warmlane.router.sim.tokens import TOKEN_BYTES
from warmlane.router.sim.workload import Texts, cut, generate

ROOT = Path(__file__).resolve().parents[2]
PIECE = Slice(shrink=4, output_shrink=4, speed=4, rate=10, think_cap_s=2)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module: it is no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.bench_wallclock")


def test_requests_are_those_of_the_player(bench: Any) -> None:
    made = cut(generate("coding", 6, seed=2), turns=6)
    played = bench.as_played(made, PIECE)
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


def test_replicas_are_those_of_the_fake_engine(bench: Any) -> None:
    own = FakeOptions(gpu=bench.GPU, scale=PIECE.shrink).engine_config()
    timing = bench.as_timed(PRESETS[bench.GPU], PIECE)
    assert timing.kv_tokens // BLOCK_TOKENS == own.blocks
    assert (timing.step_tokens, timing.max_seqs) == (own.max_num_batched_tokens, own.max_num_seqs)
    steps = [(0, 0.0, 1, 900, 1), (2000, 3e6, 0, 0, 1), (300, 1e5, 40, 90_000, 41)]
    for step in steps:
        assert timing.step_s(*step) == pytest.approx(own.timing.step_s(*step) / PIECE.speed)


def test_the_slices_fit(bench: Any) -> None:
    for _, piece in bench.SLICES.values():
        assert 1.0 <= piece.speed <= 10.0 and piece.shrink == piece.output_shrink


def test_order_is_judged_where_the_lab_tells_two_apart(bench: Any) -> None:
    lab = {"a": 1.0, "b": 1.05, "c": 2.0}
    assert bench.inverted({"a": 1.2, "b": 1.0, "c": 3.0}, lab) == []
    assert bench.inverted({"a": 1.0, "b": 2.1, "c": 2.0}, lab) == ["b before c"]
    assert len(bench.inverted({"a": 3.0, "b": 2.0, "c": 1.0}, lab)) == 2
