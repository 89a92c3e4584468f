"""`_core.mix` against its twin, which goes scorer by scorer, and its refusals."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.twin_mix import Found, Pool, Settings, choose
from warmlane._core.mix import Mix

WORDS = st.integers(0, 2**64 - 1)
# Few different values, so that totals often tie.
TOKENS = st.sampled_from([0.0, 1.0, 700.0, 1024.0, 65_536.0]) | st.floats(0, 1e7)
USAGE = st.sampled_from([0.0, 0.5, 1.0, math.nan]) | st.floats(0, 1)
SETTINGS = st.builds(
    Settings,
    st.lists(st.floats(0, 100), min_size=5, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1e5),
    st.sampled_from([1.0, 1024.0]),
    st.floats(0, 1000),
    st.floats(0, 1),
    st.integers(1, 16),
)
TYPES = "idddddddd"


@st.composite
def pools(draw: st.DrawFn) -> tuple[Pool, array[int], array[int] | None]:
    """Columns (some longer than the mask), a mask and perhaps hits."""
    size = draw(st.integers(0, 24))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size + 2))

    pool = Pool(
        column(st.integers(0, 500)),
        *(column(TOKENS) for _ in range(2)),
        column(TOKENS | st.just(math.inf)),
        column(USAGE),
        *(column(TOKENS) for _ in range(3)),
        column(st.floats(0.1, 1)),
    )
    mask = array("B", draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    blocks = array("i", draw(st.lists(st.integers(0, 10**6), min_size=size, max_size=size)))
    return pool, mask, draw(st.sampled_from([blocks, None]))


def built(settings: Settings, pool: Pool) -> Mix:
    mix = Mix(
        settings.weights,
        settings.rate,
        settings.limit_tokens,
        least_scale=settings.least_scale,
        request_tokens=settings.request_tokens,
        context_share=settings.context_share,
        limit=settings.limit,
    )
    columns: list[Any] = [array(code, each) for code, each in zip(TYPES, pool, strict=True)]
    mix.bind(*columns)
    return mix


@given(SETTINGS, pools(), st.floats(0, 1e6), st.floats(0, 1e6), st.booleans(), WORDS)
def test_equals_the_scorers_one_by_one(
    settings: Settings,
    drawn: tuple[Pool, array[int], array[int] | None],
    block_tokens: float,
    prompt: float,
    foreign: bool,
    rand: int,
) -> None:
    pool, mask, blocks = drawn
    mix = built(settings, pool)
    args = (blocks, block_tokens, prompt, mask, foreign, rand)
    want = choose(settings, pool, *args)
    slots, tokens, hit, raw = mix.choose(*args)
    got = Found(list(mix.totals), list(mix.hits), slots, tokens, hit, raw)
    assert got == want


def test_a_pool_that_grows_and_shrinks() -> None:
    settings = Settings([1.0] * 5, 0.1, 100.0, 1.0, 1.0, 1.0, 5)
    columns: list[Any] = [array(code, [1, 2]) for code in TYPES]
    mix = built(settings, Pool(*([] for _ in range(9))))
    mix.bind(*columns)
    for size in (2, 3, 1):
        while len(columns[0]) < size:
            for column in columns:
                column.append(0)
        slots, *_ = mix.choose(None, 1.0, 10.0, array("B", [1] * size), False, 7)
        assert sorted(slots) == list(range(size)) and len(mix.totals) == size
    assert mix.choose(None, 1.0, 10.0, array("B", [0, 0]), True, 7) == ((), (), 0.0, 0.0)


def test_refusals() -> None:
    settings = Settings([1.0] * 5, 0.1, 100.0, 1.0, 1.0, 1.0, 5)
    good: list[Any] = [array(code, [1, 2]) for code in TYPES]
    mask = array("B", [1, 1])

    def with_column(at: int, column: Any) -> Callable[[], object]:
        mix = built(settings, Pool(*([] for _ in range(9))))
        mix.bind(*good[:at], column, *good[at + 1 :])
        return lambda: mix.choose(None, 1.0, 10.0, mask, False, 7)

    for at, code in enumerate(TYPES):
        with pytest.raises(ValueError, match="1 slots, 2 are needed"):
            with_column(at, array(code, [1]))()
        with pytest.raises(TypeError, match="column of"):
            with_column(at, array("d" if code == "i" else "i", [1, 2]))()
    mix = built(settings, Pool(*([] for _ in range(9))))
    with pytest.raises(ValueError, match="slots, 2 are needed"):
        mix.choose(None, 1.0, 10.0, mask, False, 7)
    mix.bind(*good)
    with pytest.raises(ValueError, match="blocks has 1 slots"):
        mix.choose(array("i", [1]), 1.0, 10.0, mask, False, 7)
    flat = Mix([1.0] * 5, 0, 0, least_scale=1, request_tokens=1, context_share=0)
    flat.bind(*good[:2], array("d", [math.inf, 0]), *good[3:])
    with pytest.raises(ValueError, match="total of slot 0 is NaN"):  # 0 * inf
        flat.choose(None, 1.0, 10.0, mask, False, 7)


@pytest.mark.parametrize(
    ("weights", "limit"), [([1.0] * 4, 5), ([1.0] * 4 + [math.nan], 5), ([1.0] * 5, 0)]
)
def test_bad_parameters(weights: list[float], limit: int) -> None:
    with pytest.raises(ValueError, match=r"must be|needed"):
        Mix(weights, 0, 0, least_scale=1, request_tokens=1, context_share=1, limit=limit)


def test_bind_comes_first() -> None:
    mix = Mix([1.0] * 5, 0, 0, least_scale=1, request_tokens=1, context_share=1)
    with pytest.raises(ValueError, match="bind comes first"):
        mix.choose(None, 1.0, 1.0, array("B", [1]), False, 1)
