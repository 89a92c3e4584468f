"""The faces that a scorer, filter or picker of your own has to show. Floor 2, no behaviour.

Besides, at the end, what both network faces ask for token ids. Scorers, filters and pickers
work on columns: one value per slot of the pool, 0..len(candidates)-1. A slot may be empty
(`replicas[slot] is None`) or filtered out (`mask[slot] == 0`); what a scorer says about such a slot
is never looked at, so that it needs no special case.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from warmlane.router.types import LoadSnapshot, ModelList, ReplicaSpec, ReplicaState, Request


class ReplicaView(Protocol):
    """One replica as scorers and filters may read it."""

    @property
    def slot(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def spec(self) -> ReplicaSpec: ...
    @property
    def state(self) -> ReplicaState: ...
    @property
    def load(self) -> LoadSnapshot | None: ...
    @property
    def models(self) -> ModelList | None: ...


class Candidates(Protocol):
    """The replicas of one pool at the moment of one decision. Refilled, never kept.

    Columns are read-only to scorers, except `out`.

    mask: 'B', 1 where the filters let the replica through.
    hit_tokens: 'd', prompt tokens that the replica is believed to hold, corrected by its trust.
    requests: requests open there: this router's, plus others' where a fresh scrape shows more.
    running: 'i', this router's requests that are past their first token.
    prefill_tokens: 'd', uncached prompt tokens this router sent there with no first token yet,
        and the same guessed for the requests of others that wait in the engine (fresh scrapes).
    decode_tokens: 'd', KV tokens of the requests that this router has open there.
    waiting, kv_usage: 'd', from the last scrape; where that is stale the ledger's count of
        prefilling requests, and the mean of the fresh ones.
    prompt_tokens: estimated length of this prompt.
    scale_tokens: tokens that one whole score stands for in this decision. Scorers that speak of
        work divide by it, so that the sum of their scores orders replicas by the sum of the work.
    request_tokens, context_share: what one open request, and one of its KV tokens, weighs in
        tokens of prefill.
    placed_tokens: 'd', uncached tokens sent there of late: how much its cache was filled.
    model, adapter: as the engine knows them; adapter is "" if the request uses none.
    homes: 'Q', a hash of each replica's address by which ties are broken, or None: by slot.
    now: seconds.  zone: the router's zone.
    out: 'd', a scratch column of the right length; a scorer may fill and return it.
    """

    mask: array[int]
    hit_tokens: array[float]
    requests: array[int] | array[float]
    running: array[int]
    prefill_tokens: array[float]
    decode_tokens: array[float]
    placed_tokens: array[float]
    kv_usage: array[float]
    homes: array[int] | None
    prompt_tokens: float
    scale_tokens: float
    request_tokens: float
    context_share: float
    model: str
    adapter: str
    now: float
    zone: str
    out: array[float]

    @property
    def replicas(self) -> Sequence[ReplicaView | None]: ...
    @property
    def waiting(self) -> array[float]: ...
    @property
    def adapter_s(self) -> array[float] | None:
        """'d', seconds that the request's adapter costs there; None for a request without one."""
        ...

    def can_load(self, slot: int) -> bool:
        """Whether the router may load the request's adapter on a replica that lacks it."""
        ...

    @property
    def version(self) -> int:
        """Grows with every change of membership, state or models: caches hang on it."""
        ...

    def __len__(self) -> int: ...


@runtime_checkable
class Scorer(Protocol):
    """How good each replica is for this request, 0 (worst) to 1, by slot.

    Returns one float per slot: `candidates.out` filled (fast) or any sequence of that length, or
    None for "no opinion on this request". An exception, a NaN or a value outside 0..1 at an
    eligible slot loses no request: the decision falls back to least in-flight and says so.

    Built with its config's parameters as keywords; msgspec structs check them at start.
    """

    def score(self, request: Request, candidates: Candidates) -> Sequence[float] | None: ...


@runtime_checkable
class Filter(Protocol):
    """Which replicas may serve this request at all.

    static: the answer depends on the replicas' specs, states and models and on the request's model
        and adapter alone; it is then cached until `candidates.version` changes.
    """

    static: bool

    def keep(self, request: Request, candidates: Candidates, mask: array[int]) -> int:
        """Write 0 into `mask` where a replica must not serve; how many were taken away."""
        ...


@runtime_checkable
class Picker(Protocol):
    """Order of the eligible replicas, best first.

    needs_scores: False when totals are not looked at; then no scorer runs and no prompt is matched.
    """

    needs_scores: bool

    def pick(
        self, candidates: Candidates, totals: array[float], limit: int, rand: int, order: array[int]
    ) -> int:
        """Fill `order` with at most `limit` distinct eligible slots; how many there are."""
        ...


class TokenSource(Protocol):
    """Where a face asks for the token ids of prompts (`feeds.tokens.TokenFeed`).

    pool_of: the pool whose decision would use this request's ids, or None.
    ids: the request with its ids, or as it was when they cannot be had in time; it takes at most
        the budget of `tokenize.budget_s`.
    """

    def pool_of(self, request: Request) -> str | None: ...
    async def ids(self, request: Request, pool: str, body: bytes) -> Request: ...
