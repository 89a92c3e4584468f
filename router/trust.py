"""What answers and engine counters teach about the approximate view. Floor 3: no clock, no I/O.

Trust. The router predicts hits from its own record; the engine may hold less (other traffic, a
wrong size, a restart). Per replica, with P the predicted and A the actual hit tokens, both decayed
with time (half-life h):

    trust = clamp((A + k) / (P + k), 0.1, 1)        1 while fewer than `min_samples` were seen

The ratio of two decayed sums is the EWMA(actual / expected) of policies.md B.4 item 3, weighted by
the expected tokens, so that a miss on a short prompt does not count like one on a long prompt; k
tokens of prior belief keep a few samples from moving it and bring it back to 1 without news.
Actual hits beyond the predicted ones are cut off sample by sample: luck elsewhere does not repair
a wrong prediction.

Two sources: `cached_tokens` of single answers, and the growth of the engine's counters of prefix
cache hits and queries between two scrapes, which always exist. Where answers covered at least half
of an interval's prompt tokens the counters of that interval are not used.
"""

from __future__ import annotations

from array import array
from typing import Final

FLOOR: Final = 0.1  # a replica that is never believed would never be tried again
DECAY_STEP_S: Final = 1.0  # ages within it count as none: a power per answer would cost 0.3 us
START_BYTES_PER_TOKEN: Final = 4.0  # English text with current vocabularies
MIN_BYTES_PER_TOKEN: Final = 1.0
MAX_BYTES_PER_TOKEN: Final = 16.0


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


class BytesPerToken:
    """Bytes of prompt text per token of one pool, from the prompt_tokens of answers.

    A decayed ratio of sums, as above: value = (B + start k) / (T + k), with k = 1,024 tokens of
    prior and a half-life of `half_life` answers. It contains the chat template's tokens, as the
    engine's blocks do. Clamped to 1..16.
    """

    def __init__(self, start: float = START_BYTES_PER_TOKEN, *, half_life: float = 200.0) -> None:
        self.value = min(MAX_BYTES_PER_TOKEN, max(MIN_BYTES_PER_TOKEN, start))
        self._kept = 0.5 ** (1.0 / half_life)
        # The prior is an ordinary first sample that fades like the others.
        self._tokens = 1024.0
        self._bytes = self.value * self._tokens

    def observe(self, prompt_bytes: int, prompt_tokens: int) -> None:
        """One answer; empty prompts and answers without usage teach nothing."""
        if prompt_bytes <= 0 or prompt_tokens <= 0:
            return
        self._tokens = self._tokens * self._kept + prompt_tokens
        self._bytes = self._bytes * self._kept + prompt_bytes
        ratio = self._bytes / self._tokens
        self.value = min(MAX_BYTES_PER_TOKEN, max(MIN_BYTES_PER_TOKEN, ratio))


def blocks_for(capacity_tokens: float, bytes_per_token: float, block_bytes: int) -> int:
    """Blocks of text that fit where `capacity_tokens` tokens fit, at least 1."""
    return max(1, round(capacity_tokens * bytes_per_token / block_bytes))
