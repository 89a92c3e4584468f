from array import array

FLOOR: float

class Trust:
    """One factor per replica slot; `factors` is the column for scorers.

    half_life_s: of the memory. prior_tokens: what a belief weighs before any news (k of the formula
    in router/trust.py); both above 0. min_samples: answers or intervals needed before the factor
    leaves 1. Predictions told here are the raw ones, before any factor was applied. Every call
    raises IndexError for a slot that does not exist. 72 bytes a slot.
    """

    factors: array[float]
    def __init__(
        self,
        slots: int = 4096,
        *,
        half_life_s: float = 120.0,
        prior_tokens: float = 4096.0,
        min_samples: int = 4,
    ) -> None: ...
    def sent(self, slot: int, predicted_tokens: float, prompt_tokens: float) -> None:
        """A request whose prompt the engine has begun to compute: tell it at the first token.

        At the dispatch would be too early: the engine counts a prompt when it schedules it, and a
        queue would move it into a later interval than its prediction.
        """

    def answered(
        self,
        slot: int,
        predicted_tokens: float,
        cached_tokens: float,
        prompt_tokens: float,
        now: float,
    ) -> None:
        """An answer told its cached tokens (`usage.prompt_tokens_details.cached_tokens`)."""

    def scraped(self, slot: int, queries: float | None, hits: float | None, now: float) -> bool:
        """Counters of one scrape, in tokens since the engine's start; None: not told.

        Returns True when they went backwards: the engine restarted and its cache is empty. Traffic
        of others in the same interval is taken out by share: of the hits, those that belong to
        our part of the queried tokens count.
        """

    def reset(self, slot: int) -> None:
        """The slot has a new replica, or its engine restarted."""

def _fail_alloc_after(n: int) -> None: ...
