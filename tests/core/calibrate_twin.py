"""Plain-Python twin of `_core.calibrate`: the same shuffle, the same walk."""

from __future__ import annotations

MASK = (1 << 64) - 1


def random_ring(length: int, seed: int = 1) -> list[int]:
    ring = list(range(length))
    state = seed * 2 + 1
    for i in range(length - 1, 0, -1):
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        j = (state >> 33) % i
        ring[i], ring[j] = ring[j], ring[i]
    return ring


def follow(ring: list[int], steps: int, start: int = 0) -> int:
    for _ in range(steps):
        start = ring[start]
    return start
