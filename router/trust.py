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
of an interval's prompt tokens the counters of that interval are not used. The sums are kept by
`_core.trust`, at 40 ns an answer.
"""

from __future__ import annotations

from typing import Final

from warmlane._core.trust import FLOOR, Trust

__all__ = ["FLOOR", "BytesPerToken", "Trust", "blocks_for"]

START_BYTES_PER_TOKEN: Final = 4.0  # English text with current vocabularies
MIN_BYTES_PER_TOKEN: Final = 1.0
MAX_BYTES_PER_TOKEN: Final = 16.0


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
