"""Mistakes that mypy --strict must refuse, one a line; the expected code stands behind each."""

from __future__ import annotations

from warmlane import Config, Router
from warmlane.router.interfaces import Scorer
from warmlane.router.types import Request


class Wrong:
    def score(self, request: Request) -> float:
        return 1.0


router = Router({"pools": []})  # E: arg-type
router.decide("hello", 0.0, 1)  # E: arg-type
router.config.listen.port = 3  # E: misc
scorer: Scorer = Wrong()  # E: assignment
Config(pool=[])  # E: call-arg
