from array import array
from typing import TypeAlias

from warmlane._core.ledger import Ledger

_Floats: TypeAlias = array[float] | memoryview[float]
_Masks: TypeAlias = array[int] | memoryview[int]

class Price:
    """What it costs everybody to send a request to a replica, in tokens of prefill.

    After the busy-period price: work that could be avoided delays everyone who arrives before the
    backlog clears (M/G/1), so it is charged the more the longer the backlog is. The constants are
    ratios to the time of one token of prefill, taken over public kernel tables of 8B to 70B models
    on H100, H200 and A100; twice or half of them changes little (docs/policies.md).

    pair: attention of one query-key pair. interference: weight of the delay that a prefill brings
    to requests that run there, at most `crowd` of them, and what the mean of all replicas has more.
    large: tokens of work beyond which a longer prompt avoids those who run no more than a shorter.
    overload: how fast those bounds rise (`crowd` in requests by a request in line, the mean of all
    replicas beyond four), once first tokens take longer than late_s on the mean, and interference
    with them, up to 0.7; 0: they stay. decode: weight of the slow-down by one more sequence where
    more than `slack` times the mean of requests are; context and sequence: its cost a cached token
    and by itself. copy: weight of storing once more what another replica holds. strength: of
    the price of backlog. seconds_per_token: of prefill, for the load and for the wait for room
    alone, until it is learned (1 us to 10 ms). rho_cap: greatest utilisation believed. window_s:
    memory of the arrival rate. output: expected tokens of an answer until `tick` says better.
    spread: weight of a token that was placed there of late beyond the least filled, up to
    spread_limit in all. scarcity: weight of the wait for room in a full KV cache; reserve: share of
    the cache that is left for the growth of those who run. tempo: weight of the seconds that an
    answer takes longer there than where decoding is quickest, less what the pace of prefill says
    anyway; closer than 1.3 counts as equal, and a KV cache that fills up takes the advantage away.
    distance: what another zone costs beside `move`, in the mean work of a request of late.
    learn: whether replicas may turn out to be of unequal pace (`heard`); what is within half of the
    middle one counts as equal, what is slower or faster is believed up to 4 times.
    Raises ValueError for what is negative, infinite or out of range.
    """

    def __init__(
        self,
        *,
        pair: float = 3.5e-5,
        interference: float = 0.3,
        decode: float = 1.5,
        context: float = 1e-3,
        sequence: float = 0.2,
        copy: float = 1.0,
        strength: float = 3.0,
        seconds_per_token: float = 40e-6,
        rho_cap: float = 0.9,
        window_s: float = 60.0,
        output: float = 256.0,
        spread: float = 0.005,
        spread_limit: float = 4096.0,
        crowd: float = 12.0,
        slack: float = 1.1,
        large: float = 12e3,
        overload: float = 8.0,
        late_s: float = 2.0,
        scarcity: float = 1.0,
        reserve: float = 0.1,
        tempo: float = 0.15,
        distance: float = 4.0,
        learn: bool = True,
    ) -> None: ...
    def prices(
        self,
        prompt: float,
        hits: _Floats,
        waiting: _Floats,
        running: _Floats,
        placed: _Floats,
        mask: _Masks,
        out: _Floats,
    ) -> float:
        """Prices of the kept slots into `out`, in tokens; the greatest.

        prompt, hits: tokens; waiting: uncached tokens in line; running: requests under way;
        placed: tokens placed there of late.
        Raises TypeError and ValueError for columns of another type or too short, and for a price
        that is not finite.
        """

    def terms(
        self,
        prompt: float,
        hits: _Floats,
        waiting: _Floats,
        running: _Floats,
        placed: _Floats,
        mask: _Masks,
    ) -> list[dict[str, float]]:
        """What each price is the sum of, by slot; 0 where masked. Arguments and errors of `prices`.

        line, own, later (theta), delays (of those who run there), decode, copy, spread, room, zone.
        """

    def placed(self, prompt: float, hit: float) -> None:
        """A decision was made: a prompt of that many tokens, of which `hit` were held."""

    own_rate: float
    """Requests a second that were decided here, as of the last `tick`."""
    own_work: float
    """Tokens of work a second that were decided here, as of the last `tick`."""

    def others(self, rate: float, work: float) -> None:
        """What other routers send to the same replicas: requests and tokens of work a second.

        Counts from the next `tick`. Raises ValueError for what is negative or not finite.
        """

    def damp(self, share: float) -> None:
        """Prices above the least by less than that share of the whole prompt's work are equal.

        For a router that does not know of others' work and prefixes; 0 (the beginning): keen.
        Raises ValueError for what is negative or not finite.
        """

    def move(self, slot: int, tokens: float) -> None:
        """What a replica costs more because it is far from the router; 0 (the beginning): near.

        Raises ValueError for a negative slot and for tokens that are negative or not finite.
        """

    def holds(self, slot: int, capacity: float, usage: float) -> None:
        """KV cache of a replica in tokens (below 1: not known), and the share of it that is in use.

        Raises ValueError for what is negative, not finite, or a usage above 1.
        """

    def heard(self, slot: int, tokens: float, seconds: float) -> None:
        """A first token came `seconds` after its decision, with so many uncached tokens in line.

        The line holds the request's own. Only what was observed, streamed, and not sent again;
        negative values are ignored.
        """

    def streamed(
        self, slot: int, output: float, seconds: float, beside: tuple[float, float, float]
    ) -> None:
        """An answer of so many tokens streamed to its end, `seconds` after its first token.

        beside: requests that decoded there, their KV tokens, tokens that were prefilled there
        meanwhile, as `Ledger.decoded` tells. Only what was observed and not sent again; answers of
        fewer than 8 tokens are ignored, and values that are not finite.
        """

    def began(self, book: Ledger, ticket: int, slot: int, now: float) -> int:
        """`heard` of an open ticket, before the ledger hears of its first token; 0."""

    def ended(self, book: Ledger, ticket: int, slot: int, made: float, now: float) -> int:
        """`streamed` of an open ticket whose answer has so many tokens, before it is closed; 0."""

    def forget(self, slot: int) -> None:
        """Another replica has the slot."""

    def pace(self, slot: int) -> tuple[float, float, float, int]:
        """(factor of its prices, seconds before any token, seconds a token, samples)."""

    def tempo(self, slot: int) -> tuple[float, float, float, float, int]:
        """(factor of decoding there, seconds a token of an answer before any load, more a unit of
        the batch, more a token that is prefilled there meanwhile, samples)."""

    seconds: float
    """Of a token of prefill at the middle replica: learned, as configured until then."""

    def foretold(self, slot: int) -> tuple[int, float, float, float]:
        """How predicted times to the first token came true since the pace is believed.

        (first tokens, predicted seconds, seconds that they took, sum of absolute differences);
        each was predicted by what had been learned before it. From nothing after `forget`.
        """

    def tick(self, now: float, replicas: int, output: float, requests: float = 0.0) -> None:
        """Now and then (a second or so): rates as of `now` over that many replicas.

        output: mean tokens of an answer. requests: of this router that are open, which with their
        rate tell how long one stays.
        """

    @property
    def reuse(self) -> float:
        """Share of the prompts of late that was expected in the caches, 0 to 1."""

    @property
    def ahead(self) -> float:
        """Extra weight of own work for each token of mean backlog."""

    @property
    def work(self) -> float:
        """Work of a typical token in line, in tokens without attention."""

def _fail_alloc_after(n: int) -> None: ...
