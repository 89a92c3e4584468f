"""Model rewrites of a pool: which name the engine gets for a name that a client asks for. Floor 3.

A rule matches exact names, or every name when it lists none. Exact beats generic; among several
the oldest rewrite wins, then the first rule in it (InferenceModelRewrite v1alpha2). Targets are
weighted.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Final

import msgspec

_BITS: Final = 32


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """models: exact names, [] for all. targets: (name the engine sees, weight), at least one."""

    models: list[str] = []
    targets: list[tuple[str, int]]


class Rewrite(msgspec.Struct, frozen=True, kw_only=True):
    """One object. created: RFC 3339 in UTC, so that text order is time order."""

    name: str
    created: str = ""
    rules: list[Rule] = []


class Arms:
    """Weighted targets of one rule."""

    __slots__ = ("_names", "_sums")

    def __init__(self, targets: list[tuple[str, int]]) -> None:
        self._names = [name for name, _ in targets]
        self._sums = list(accumulate(weight for _, weight in targets))

    def __len__(self) -> int:
        return len(self._names)

    def choose(self, chance: int) -> str:
        """By the low 32 bits of `chance`."""
        point = (chance % (1 << _BITS)) * self._sums[-1] >> _BITS
        return next(name for name, end in zip(self._names, self._sums, strict=True) if point < end)


class Rewrites:
    """The rules of one pool in the order of their right. Replaced whole."""

    __slots__ = ("exact", "generic", "source")

    def __init__(self, source: Iterable[Rewrite] = ()) -> None:
        ordered = sorted(source, key=lambda each: (each.created, each.name))
        self.source = tuple(ordered)
        self.exact: dict[str, Arms] = {}
        self.generic: Arms | None = None
        for rewrite in ordered:
            for rule in rewrite.rules:
                arms = Arms(rule.targets)
                for model in rule.models:
                    self.exact.setdefault(model, arms)
                if not rule.models and self.generic is None:
                    self.generic = arms
