"""A small seeded source of chance for workloads: the same numbers on every machine and version.

The pure floors of the code touch no global random state; whoever builds a workload passes a seed.
The generator is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014); it is not for cryptography.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from math import cos, exp, log, pi, sqrt
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


class Chance:
    """Draws from a few distributions. All lengths and times are positive floats."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def bits(self) -> int:
        """64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        word = self._state
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
        return word ^ (word >> 31)

    def uniform(self) -> float:
        """0 <= x < 1."""
        return (self.bits() >> 11) * 2.0**-53

    def below(self, limit: int) -> int:
        """0 <= n < limit."""
        return self.bits() * limit >> 64

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def shuffle(self, items: MutableSequence[T]) -> None:
        for index in range(len(items) - 1, 0, -1):
            other = self.below(index + 1)
            items[index], items[other] = items[other], items[index]

    def exponential(self, mean: float) -> float:
        return -mean * log(1.0 - self.uniform())

    def normal(self) -> float:
        """Mean 0, deviation 1 (Box-Muller)."""
        radius = sqrt(-2.0 * log(1.0 - self.uniform()))
        return radius * cos(2.0 * pi * self.uniform())

    def lognormal(self, median: float, mean: float) -> float:
        """A log-normal draw with this median and mean (mean below the median: no spread)."""
        sigma = sqrt(2.0 * log(mean / median)) if mean > median else 0.0
        return median * exp(sigma * self.normal())

    def gamma(self, mean: float, cv: float) -> float:
        """A gamma draw with this mean and coefficient of variation (Marsaglia and Tsang, 2000)."""
        if cv <= 0.0:
            return mean
        shape = 1.0 / (cv * cv)
        boost = 1.0
        if shape < 1.0:
            boost = (1.0 - self.uniform()) ** (1.0 / shape)
            shape += 1.0
        d = shape - 1.0 / 3.0
        c = 1.0 / sqrt(9.0 * d)
        while True:
            x = self.normal()
            v = (1.0 + c * x) ** 3
            if v > 0.0 and log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * log(v):
                break
        true_shape = 1.0 / (cv * cv)
        return d * v * boost * mean / true_shape
