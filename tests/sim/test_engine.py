"""The scheduler and the block pool of the engine model: vLLM's rules, one test each."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from warmlane.router.sim.blocks import BlockPool
from warmlane.router.sim.engine import Cleared, Engine, EngineConfig, Removed, Sequence, Stored
from warmlane.router.sim.timing import PRESETS

TIMING = PRESETS["llama-3.1-8b/h100"]


def engine(blocks: int = 64, **options: Any) -> Engine:
    values = {"block_size": 16, "max_num_batched_tokens": 8192, "events": True, **options}
    return Engine(EngineConfig(timing=TIMING, blocks=blocks, **values))


def ask(
    prompt: int, output: int, start: int = 0, adapter: str = "", finish: str = "length"
) -> Sequence:
    """A prompt whose k-th block has key start + k."""
    keys = [start + index + 1 for index in range((prompt + output - 1) // 16)]
    return Sequence(prompt, output, keys, adapter=adapter, finish=finish)


def drain(model: Engine, now: float = 0.0, limit: int = 10_000) -> tuple[float, list[Any]]:
    events: list[Any] = []
    for _ in range(limit):
        seconds = model.begin_step(now)
        if seconds is None:
            return now, events
        now += seconds
        events += model.end_step(now).events
        model.pool.check_invariants()
    raise AssertionError("the engine does not come to rest")


def test_a_hit_covers_full_blocks_and_leaves_one_token() -> None:
    model = engine()
    for prompt, cached in [(64, 0), (64, 48), (63, 48), (65, 64), (48, 32)]:
        sequence = ask(prompt, 1)
        model.add(sequence, 0.0)
        drain(model)
        assert sequence.cached == cached, prompt
        assert sequence.reason == "length"


def test_prompts_in_flight_share_blocks() -> None:
    model = engine()
    first, second = ask(100, 4), ask(100, 4)
    model.add(first, 0.0)
    model.add(second, 0.0)
    _, events = drain(model)
    assert (first.cached, second.cached) == (0, 96)
    assert [event.last - event.first for event in events if isinstance(event, Stored)] == [6]


def test_generated_tokens_fill_blocks_and_are_hit_by_the_next_turn() -> None:
    model = engine()
    turn = ask(20, 30)
    model.add(turn, 0.0)
    _, events = drain(model)
    assert [(e.first, e.last) for e in events if isinstance(e, Stored)] == [(0, 1), (1, 2), (2, 3)]
    following = ask(60, 1)
    model.add(following, 0.0)
    drain(model)
    assert following.cached == 48  # 20 + 29 computed tokens: three full blocks


def test_long_prompts_are_computed_in_chunks_beside_decodes() -> None:
    model = engine(blocks=200, max_num_batched_tokens=64)
    first, long = ask(10, 50), ask(640, 2, start=100)
    model.add(first, 0.0)
    now = model.begin_step(0.0) or 0.0
    model.end_step(now)
    model.add(long, now)
    steps = 0
    while long.first_token_at < 0:
        now += model.begin_step(now) or 0.0
        model.end_step(now)
        steps += 1
    assert steps == 11  # 63 tokens a step beside one decode: 640 / 63 rounded up
    assert first.produced == 1 + steps


def test_the_whole_prompt_must_fit_before_a_sequence_enters() -> None:
    model = engine(blocks=11, max_num_batched_tokens=32)
    small, big = ask(80, 20), ask(96, 1, start=50)
    model.add(small, 0.0)
    model.add(big, 0.0)
    now = model.begin_step(0.0) or 0.0
    model.end_step(now)
    assert model.running == [small]
    assert list(model.waiting) == [big]
    drain(model, now)
    assert (small.reason, big.reason) == ("length", "length")


def test_preemption_takes_the_last_and_recomputes_from_the_cache() -> None:
    model = engine(blocks=13)
    first, last = ask(64, 100), ask(64, 100, start=50)
    model.add(first, 0.0)
    model.add(last, 0.0)
    drain(model)
    assert first.preemptions == 0
    assert last.preemptions >= 1
    assert (first.produced, last.produced) == (100, 100)
    assert model.counters.prefix_queries == 128  # each request is counted once


def test_eviction_takes_the_tail_of_the_oldest_first_and_says_so() -> None:
    model = engine(blocks=9)
    for start in (0, 100):
        model.add(ask(64, 1, start), 0.0)
        drain(model)
    model.add(ask(32, 1, 200), 0.0)
    _, events = drain(model)
    assert events[:2] == [Removed(4), Removed(3)]
    again = ask(64, 1)
    model.add(again, 0.0)
    drain(model)
    assert again.cached == 32


def test_reset_is_refused_while_blocks_are_held_and_told_with_the_next_step() -> None:
    model = engine()
    sequence = ask(64, 3)
    model.add(sequence, 0.0)
    now = model.begin_step(0.0) or 0.0
    assert not model.reset_cache()
    model.end_step(now)
    drain(model, now)
    assert model.reset_cache()
    cold = ask(64, 1)
    model.add(cold, now)
    _, events = drain(model, now)
    assert isinstance(events[0], Cleared)
    assert cold.cached == 0


def test_adapters_beyond_the_slots_wait_and_let_others_pass() -> None:
    model = engine(max_loras=1)
    first, other, base = ask(16, 5, 0, "a"), ask(16, 5, 10, "b"), ask(16, 5, 20)
    for sequence in (first, other, base):
        model.add(sequence, 0.0)
    now = model.begin_step(0.0) or 0.0
    assert model.running == [first, base]
    assert model.deferred == 1
    model.end_step(now)
    drain(model, now)
    assert {each.reason for each in (first, other, base)} == {"length"}


def test_an_abort_frees_blocks_at_once_even_inside_a_step() -> None:
    model = engine()
    running, waiting = ask(64, 10), ask(64, 10, start=50)
    model.add(running, 0.0)
    now = model.begin_step(0.0) or 0.0
    model.add(waiting, 0.0)
    model.abort(running, now)
    model.abort(waiting, now)
    assert model.pool.usage == 0.0
    output = model.end_step(now)
    assert output.advanced == []
    assert running.reason == waiting.reason == "abort"
    assert model.begin_step(now) is None


def test_a_request_that_can_never_run_is_refused() -> None:
    model = engine(blocks=5)
    for sequence in (ask(60, 10), Sequence(0, 1, [])):
        try:
            model.add(sequence, 0.0)
        except ValueError:
            continue
        raise AssertionError("accepted")


def test_scaled_prompts_cost_as_much_as_full_ones() -> None:
    eighth = msgspec.structs.replace(TIMING, scale=8.0)
    assert abs(eighth.prefill_s(1000) / TIMING.prefill_s(8000) - 1) < 1e-9


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 120), st.integers(0, 60), st.integers(0, 3), st.sampled_from(["", "a", "b"])
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.integers(12, 40), st.integers(1, 96), st.integers(1, 6), st.data())
def test_any_load_comes_to_rest_and_the_events_mirror_the_cache(
    requests: list[tuple[int, int, int, str]], blocks: int, budget: int, seqs: int, data: Any
) -> None:
    """Stores minus removals, counted per key, are the copies in the pool after every step."""
    model = engine(blocks, max_num_batched_tokens=budget, max_num_seqs=seqs, max_loras=1)
    held: dict[int, int] = {}
    pending = [
        ask(prompt, output, 1000 * family + len(adapter) * 500, adapter)
        for prompt, output, family, adapter in requests
        if prompt + output <= model.context_tokens
    ]
    sequences = list(pending)
    now = 0.0
    for _ in range(60_000):
        if pending and data.draw(st.booleans()):
            model.add(pending.pop(), now)
        seconds = model.begin_step(now)
        if seconds is None:
            if not pending:
                break
            model.add(pending.pop(), now)
            continue
        now += seconds
        for event in model.end_step(now).events:
            if isinstance(event, Stored):
                for key in event.sequence.keys[event.first : event.last]:
                    held[key] = held.get(key, 0) + 1
            elif isinstance(event, Removed):
                held[event.key] -= 1
        model.pool.check_invariants()
        assert {key for key, count in held.items() if count} == set(model.pool._cached)
    assert all(sequence.reason for sequence in sequences)
    assert all(sequence.produced == sequence.output for sequence in sequences)
    assert model.pool.usage == 0.0


def test_copies_of_a_key_are_removed_one_by_one() -> None:
    pool = BlockPool(4)
    removed: list[int] = []
    first, second, third = pool.allocate(3, removed)
    pool.store(first, 7)
    pool.store(second, 7)
    pool.release([first, second, third])
    assert pool.lookup([7], 1) == [first]
    assert pool.allocate(1, removed) == [third]
    assert pool.allocate(1, removed) == [second]
    assert (removed, pool.lookup([7], 1)) == ([7], [first])
    assert pool.allocate(1, removed) == [first]
    assert (removed, pool.lookup([7], 1)) == ([7, 7], [])
