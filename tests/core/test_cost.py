"""`_core.cost` against its twin, its refusals, and the fairness of its ties."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import twin_cost
from warmlane._core import cost

FLOATS = st.floats(-10, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0])
COLUMNS = st.lists(FLOATS, max_size=20).map(lambda values: array("d", values)) | st.lists(
    st.integers(-5, 10**6), max_size=20
).map(lambda values: array("i", values))
SCALES = st.floats(-1, 1e6)
WORDS = st.integers(0, 2**64 - 1)


def column(size: int) -> array[float]:
    return array("d", [-7.0] * size)


@st.composite
def masked(draw: st.DrawFn) -> tuple[array[int], array[float], array[int]]:
    """A mask, totals that often tie, names of the replicas; totals may be longer than the mask."""
    size = draw(st.integers(0, 20))
    mask = array("B", draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    values = st.sampled_from([0.0, 0.5, 1.0, 1.5, -math.inf])
    total = array("d", draw(st.lists(values, min_size=size, max_size=size + 3)))
    homes = array("Q", draw(st.lists(WORDS, min_size=size, max_size=size)))
    return mask, total, homes


@given(COLUMNS, SCALES)
def test_one_column(col: Any, scale: float) -> None:
    for name in ("fraction", "saturate"):
        out = column(len(col))
        getattr(cost, name)(col, scale, out)
        assert list(out) == getattr(twin_cost, name)(col, scale), name
        assert all(0.0 <= value <= 1.0 for value in out)
    out = column(len(col))
    cost.inverse(col, out)
    assert list(out) == twin_cost.inverse(col)


@given(COLUMNS, st.lists(st.integers(0, 1), min_size=20, max_size=20))
def test_less_is_better(col: Any, bits: list[int]) -> None:
    mask, out = array("B", bits[: len(col)]), column(len(col))
    cost.less_is_better(col, mask, out)
    assert list(out) == pytest.approx(twin_cost.less_is_better(col, mask))


@given(
    st.lists(st.integers(0, 10_000), max_size=10), st.floats(0, 100), st.floats(0, 1e6), st.data()
)
def test_hit_tokens(
    counts: list[int], per_block: float, prompt: float, data: st.DataObject
) -> None:
    blocks = array("i", counts)
    factors = data.draw(
        st.none() | st.lists(st.floats(0.1, 1), min_size=len(counts), max_size=len(counts) + 2)
    )
    trust = None if factors is None else array("d", factors)
    out = column(len(counts))
    cost.hit_tokens(blocks, per_block, prompt, trust, out)
    assert list(out) == twin_cost.hit_tokens(blocks, per_block, prompt, trust)


def test_tokens_saved_is_not_a_ratio_for_short_prompts() -> None:
    out = column(1)
    cost.tokens_saved(array("d", [180.0]), 200, out)
    short = out[0]
    cost.tokens_saved(array("d", [20_000.0]), 40_000, out)
    assert short < out[0] == 0.5
    cost.tokens_saved(array("d", [180.0]), 200, out, 0.0)
    assert out[0] == 0.9


@given(masked(), st.lists(st.floats(-2, 5), max_size=5), st.data())
def test_combine(
    case: tuple[array[int], array[float], array[int]], weights: list[float], data: st.DataObject
) -> None:
    mask, size = case[0], len(case[0])
    values = st.lists(st.floats(0, 1 + 1e-10), min_size=size, max_size=size + 2)
    scores = [data.draw(values) for _ in weights]
    out = column(size)
    cost.combine([array("d", score) for score in scores], array("d", weights), mask, out)
    assert list(out) == twin_cost.combine(scores, weights, mask)
    again = column(size)
    cost.combine([tuple(score) for score in scores], array("d", weights), mask, again)
    assert again == out


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1.001, -0.001])
@pytest.mark.parametrize("kind", [list, lambda values: array("d", values)])
def test_combine_names_the_bad_scorer(wrong: float, kind: Any) -> None:
    good, weights = array("d", [0.5] * 4), array("d", [1.0] * 3)
    mask, out = array("B", [1, 1, 0, 1]), column(4)
    with pytest.raises(cost.ScoreError, match="scorer 1") as caught:
        cost.combine([good, kind([0.5, 0.5, 0.5, wrong]), good], weights, mask, out)
    assert (caught.value.scorer, caught.value.slot) == (1, 3)
    # At a slot that was filtered out nobody looks.
    cost.combine([good, kind([0.5, 0.5, wrong, 0.5]), good], weights, mask, out)
    assert list(out) == [1.5, 1.5, -math.inf, 1.5]


def test_combine_refuses_wrong_shapes() -> None:
    mask, out, weights = array("B", [1, 1]), column(2), array("d", [1.0])
    score = array("d", [0.5, 0.5])
    short: list[tuple[Any, Any, Any, Any]] = [
        ([array("d", [0.5])], weights, mask, out),
        ([[0.5]], weights, mask, out),
        ([score, score], weights, mask, out),
        ([score], weights, mask, column(1)),
        ([score], array("d", [math.nan]), mask, out),
    ]
    mistyped: list[tuple[Any, Any, Any, Any]] = [
        ([array("f", [0.5, 0.5])], weights, mask, out),
        ([["high", "low"]], weights, mask, out),
        ([score], array("i", [1]), mask, out),
        ([score], weights, array("b", [1, 1]), out),
        ([score], weights, mask, array("f", [0.0, 0.0])),
    ]
    for arguments in short:
        with pytest.raises(ValueError):
            cost.combine(*arguments)
    for arguments in mistyped:
        with pytest.raises(TypeError):
            cost.combine(*arguments)


@given(masked(), st.integers(-2, 25), st.integers(-(2**70), 2**70), st.booleans())
def test_top_k(
    case: tuple[array[int], array[float], array[int]], k: int, rand: int, named: bool
) -> None:
    mask, total, names = case
    homes = names if named else None
    order = array("i", [-9] * 20)
    found = cost.top_k(total, mask, k, rand, order, homes)
    expected = twin_cost.top_k(total, mask, k, rand, homes)
    assert list(order[:found]) == expected
    assert set(order[found:]) <= {-9}
    first = twin_cost.top_k(total, mask, 1, rand, homes)
    assert cost.arg_max(total, mask, rand, homes) == (first[0] if first else -1)
    level = array("d", [0.0] * len(mask))
    if named:
        assert cost.rendezvous(rand, names, mask) == cost.arg_max(level, mask, rand, names)


def test_ties_are_fair_at_every_place() -> None:
    size, rounds = 5, 10_000
    total, mask, order = array("d", [1.0] * size), array("B", [1] * size), array("i", [0] * size)
    places = [Counter[int]() for _ in range(size)]
    for rand in range(rounds):
        assert cost.top_k(total, mask, size, rand, order) == size
        for place, slot in enumerate(order):
            places[place][slot] += 1
    for counter in places:
        # 2,000 expected, standard deviation 40: five of them.
        assert all(abs(counter[slot] - rounds / size) < 200 for slot in range(size)), counter


def test_rendezvous_is_stable_and_moves_only_the_keys_of_the_leaver() -> None:
    homes = array("Q", [0xABC0 + 977 * at for at in range(8)])
    mask = array("B", [1] * 8)
    before = [cost.rendezvous(key, homes, mask) for key in range(4000)]
    assert min(Counter(before).values()) > 350
    turned = array("Q", reversed(homes))
    assert [7 - cost.rendezvous(key, turned, mask) for key in range(4000)] == before
    mask[3] = 0
    after = [cost.rendezvous(key, homes, mask) for key in range(4000)]
    assert all(new == old for new, old in zip(after, before, strict=True) if old != 3)
    assert 3 not in after
    assert cost.rendezvous(1, homes, array("B", bytes(8))) == -1


def test_a_nan_total_is_refused_where_it_counts() -> None:
    total, order = array("d", [1.0, math.nan]), array("i", [0, 0])
    both, first = array("B", [1, 1]), array("B", [1, 0])
    with pytest.raises(ValueError, match="slot 1 is NaN"):
        cost.top_k(total, both, 2, 0, order)
    with pytest.raises(ValueError, match="slot 1 is NaN"):
        cost.arg_max(total, both, 0)
    assert cost.top_k(total, first, 2, 0, order) == 1
    assert cost.arg_max(total, first, 0) == 0


def test_masks() -> None:
    mask = array("B", [1, 1, 0, 2, 1])
    assert cost.count(mask) == 4
    assert cost.keep_below(array("d", [0.5, 2.0, 0.0, math.nan, 1.0]), 1.0, mask) == 3
    assert list(mask) == [1, 0, 0, 0, 0]
    assert cost.keep_below(array("i", [3, 0, 0, 0, 0, 9]), 4.0, mask) == 0


def test_longer_columns_and_other_buffers() -> None:
    out = column(2)
    cost.saturate(array("i", [1, 2, 99]), 4.0, out)
    assert list(out) == [0.75, 0.5]
    with pytest.raises(ValueError, match="col has 1"):
        cost.saturate(array("i", [1]), 4.0, out)
    block = bytearray(16)
    view = memoryview(block).cast("d")
    cost.fraction(array("d", [1.0, 3.0]), 4.0, view)
    assert list(view) == [0.25, 0.75]
    cost.inverse(view, out)
    assert list(out) == [0.8, 1 / 1.75]
    with pytest.raises(BufferError):
        cost.fraction(view, 4.0, memoryview(bytes(16)).cast("d"))
    with pytest.raises(TypeError):
        cost.fraction(memoryview(bytes(16)).cast("f"), 4.0, out)
    with pytest.raises(TypeError):
        cost.fraction([1.0, 2.0], 4.0, out)  # type: ignore[arg-type]
    view.release()
    block.append(0)  # no buffer is held after the calls


FINITE = st.floats(-1e6, 1e6)
NUMBERS = st.lists(FINITE, max_size=20).map(lambda values: array("d", values)) | st.lists(
    st.integers(-5, 10**6), max_size=20
).map(lambda values: array("i", values))


@given(NUMBERS, st.lists(st.integers(0, 1), min_size=20, max_size=20), st.floats(0, 10), SCALES)
def test_sums_over_kept_slots(col: Any, bits: list[int], factor: float, limit: float) -> None:
    mask, limit, size = array("B", bits[: len(col)]), abs(limit), len(col)
    assert cost.greatest(col, mask) == twin_cost.greatest(col, mask)
    out = column(size)
    cost.excess(col, mask, factor, limit, out)
    if any(mask):
        assert list(out) == pytest.approx(twin_cost.excess(col, mask, factor, limit))
        assert all(0 <= value <= limit for value in out)
    cost.blend(col, factor, col, -1.5, out)
    assert list(out) == pytest.approx(twin_cost.blend(col, factor, col, -1.5))


def test_blend_may_write_into_its_input() -> None:
    col, other = array("d", [1.0, 2.0]), array("i", [10, 20, 30])
    cost.blend(col, 2.0, other, 0.5, col)
    assert list(col) == [7.0, 14.0]
    with pytest.raises(ValueError, match="other"):
        cost.blend(col, 1.0, array("i", [1]), 1.0, col)
    for call in (
        lambda: cost.greatest(array("d"), array("B", [1])),
        lambda: cost.excess(array("d"), array("B", [1]), 1.0, 1.0, array("d", [0.0])),
    ):
        with pytest.raises(ValueError, match="col"):
            call()


@given(
    st.lists(st.tuples(*[st.integers(0, 900)] * 4, st.sampled_from([-1, 0, 16, 32])), max_size=9),
    st.sampled_from([16, 32]),
    st.integers(0, 1000),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.floats(0.1, 60),
)
def test_tokens_of_exact_views(
    rows: list[tuple[int, int, int, int, int]],
    size: int,
    limit: int,
    worth: tuple[float, float],
    per_block: float,
) -> None:
    counts = [(gpu, gpu + more, gpu + more + far) for gpu, more, far, _, _ in rows]
    columns = [array("i", [row[at] for row in counts]) for at in range(3)]
    booked = array("i", [row[3] for row in rows])
    sizes = array("i", [row[4] for row in rows])
    out = array("i", bytes(4 * len(rows)))
    trust = array("d", [1.0 if row[0] % 2 else row[1] / 900 for row in rows])
    cost.whole_tokens(booked, per_block, trust, out)
    expected = twin_cost.whole_tokens(booked, per_block, trust)
    assert list(out) == expected
    cost.tier_tokens(*columns, booked, sizes, size, limit, *worth, out)
    assert list(out) == twin_cost.tier_tokens(counts, booked, sizes, size, limit, worth, expected)
    with pytest.raises(ValueError, match="1 are needed"):
        cost.whole_tokens(array("i"), 1.0, array("d", [1.0]), array("i", [0]))
    with pytest.raises(ValueError, match="trust"):
        cost.whole_tokens(array("i", [1]), 1.0, array("d"), array("i", [0]))
