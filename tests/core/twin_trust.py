"""Plain-Python twin of `_core.trust`: one column a number, a power for every decay."""

from __future__ import annotations

from array import array
from typing import Final

FLOOR: Final = 0.1
DECAY_STEP_S: Final = 1.0


class Trust:
    """One factor per replica slot; `factors` is the column for scorers.

    half_life_s: of the memory. prior_tokens: k above. min_samples: answers or intervals needed.
    Predictions told here are the raw ones, before any factor was applied.
    """

    def __init__(
        self,
        slots: int = 4096,
        *,
        half_life_s: float = 120.0,
        prior_tokens: float = 4096.0,
        min_samples: int = 4,
    ) -> None:
        self.factors = array("d", [1.0] * slots)
        self._half_life_s = half_life_s
        self._prior = prior_tokens
        self._min_samples = min_samples
        zeros = bytes(8 * slots)
        self._actual = array("d", zeros)
        self._predicted = array("d", zeros)
        self._samples = array("i", bytes(4 * slots))
        self._updated = array("d", zeros)
        # The interval since the last scrape, by slot.
        self._sent_prompt = array("d", zeros)
        self._sent_predicted = array("d", zeros)
        self._answered_prompt = array("d", zeros)
        self._counters: dict[int, tuple[float, float]] = {}

    def sent(self, slot: int, predicted_tokens: float, prompt_tokens: float) -> None:
        """A request whose prompt the engine has begun to compute: tell it at the first token.

        At the dispatch would be too early: the engine counts a prompt when it schedules it, and a
        queue would move it into a later interval than its prediction.
        """
        self._sent_predicted[slot] += predicted_tokens
        self._sent_prompt[slot] += prompt_tokens

    def answered(
        self,
        slot: int,
        predicted_tokens: float,
        cached_tokens: float,
        prompt_tokens: float,
        now: float,
    ) -> None:
        """An answer told its cached tokens (`usage.prompt_tokens_details.cached_tokens`)."""
        self._answered_prompt[slot] += prompt_tokens
        if predicted_tokens > 0:
            if cached_tokens > predicted_tokens:
                cached_tokens = predicted_tokens
            self._learn(slot, predicted_tokens, cached_tokens, now)

    def scraped(self, slot: int, queries: float | None, hits: float | None, now: float) -> bool:
        """Counters of one scrape, in tokens since the engine's start; None: not told.

        Returns True when they went backwards: the engine restarted and its cache is empty. Traffic
        of others in the same interval is taken out by share: of the hits, those that belong to
        our part of the queried tokens count.
        """
        predicted, prompt = self._sent_predicted[slot], self._sent_prompt[slot]
        answered = self._answered_prompt[slot]
        self._sent_predicted[slot] = self._sent_prompt[slot] = self._answered_prompt[slot] = 0.0
        if queries is None or hits is None:
            return False
        before = self._counters.get(slot)
        self._counters[slot] = (queries, hits)
        if before is None:
            return False
        new_queries, new_hits = queries - before[0], hits - before[1]
        if new_queries < 0 or new_hits < 0:
            return True
        if predicted > 0 and new_queries > 0 and answered < 0.5 * prompt:
            ours = min(1.0, prompt / new_queries)
            self._learn(slot, predicted, min(new_hits * ours, predicted), now)
        elif self._samples[slot]:
            self._decay(slot, now)
        return False

    def reset(self, slot: int) -> None:
        """The slot has a new replica, or its engine restarted."""
        for column in (self._actual, self._predicted, self._updated):
            column[slot] = 0.0
        for column in (self._sent_prompt, self._sent_predicted, self._answered_prompt):
            column[slot] = 0.0
        self._samples[slot] = 0
        self.factors[slot] = 1.0
        self._counters.pop(slot, None)

    def _learn(self, slot: int, predicted: float, actual: float, now: float) -> None:
        if now - self._updated[slot] >= DECAY_STEP_S:
            self._decay(slot, now)
        total = self._predicted[slot] = self._predicted[slot] + predicted
        found = self._actual[slot] = self._actual[slot] + (actual if actual > 0 else 0.0)
        if self._samples[slot] < self._min_samples:
            self._samples[slot] += 1
            self._set(slot)
            return
        ratio = (found + self._prior) / (total + self._prior)  # as in _set, once per answer
        self.factors[slot] = FLOOR if ratio < FLOOR else ratio if ratio < 1.0 else 1.0

    def _decay(self, slot: int, now: float) -> None:
        age = max(0.0, now - self._updated[slot])
        self._updated[slot] = now
        kept = 0.5 ** (age / self._half_life_s)
        self._predicted[slot] *= kept
        self._actual[slot] *= kept
        self._set(slot)

    def _set(self, slot: int) -> None:
        if self._samples[slot] < self._min_samples:
            return
        ratio = (self._actual[slot] + self._prior) / (self._predicted[slot] + self._prior)
        self.factors[slot] = FLOOR if ratio < FLOOR else ratio if ratio < 1.0 else 1.0
