"""What tests of several rooms need: waiting for what others bring about, the core's own chance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

_MASK = (1 << 64) - 1


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition of the outside world; AssertionError when it does not come."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def split_mix(seed: int) -> Callable[[int], int]:
    """The random numbers of the compiled courses, for the Python half beside them."""

    def numbers() -> Iterator[int]:
        state = seed
        while True:
            state = (state + 0x9E3779B97F4A7C15) & _MASK
            word = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
            word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
            yield word ^ (word >> 31)

    source = numbers()
    return lambda _: next(source)
