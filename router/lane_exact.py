"""A lane whose pool hears its engines' events: exact hits where they are complete. Floor 4.

Joins the two views of one pool. Each decision looks replicas up in the exact view where its events
are trusted and the request's token ids are known, and in the record of what was sent elsewhere; all
hits are tokens. The record goes on for every replica, so that it can take over at any time.

A pool without events has a plain `Lane` and pays for nothing of this.
"""

from __future__ import annotations

from array import array
from typing import Final, TypeAlias, cast

import msgspec

from warmlane._core import cost
from warmlane._core.hashing import KeyArray
from warmlane._core.ledger import TICKET_BITS
from warmlane.router.candidates import CandidateColumns
from warmlane.router.config import Index
from warmlane.router.exact import ExactView
from warmlane.router.lane import Lane, Prepared
from warmlane.router.lane_open import Open
from warmlane.router.pool import Pool, Replica
from warmlane.router.prefix import PrefixKey
from warmlane.router.types import Decision, Outcome, Request
from warmlane.router.view import CacheView
from warmlane.router.watchdog import Facts

_TICKET_MASK: Final = (1 << TICKET_BITS) - 1
_CUT: Final = 1.5

# Hit tokens by slot, the request's chains by block size, and how many tokens it has.
Found: TypeAlias = "tuple[array[int], dict[int, KeyArray], int]"


class MixedView(CacheView):
    """The record of what was sent, and what engines say they hold.

    found: of the request that is being decided; None when nobody can be looked up exactly.
    """

    def __init__(self, pool: Pool, config: Index, max_replicas: int) -> None:
        super().__init__(pool, config, max_replicas)
        self.exact = ExactView(
            pool,
            max_replicas,
            config.exact_bytes,
            cpu_worth=config.cpu_worth,
            disk_worth=config.disk_worth,
        )
        self.exact.on_cleared = self._on_cleared
        self._ones = array("d", [1.0]) * max_replicas
        self._believed = array("i")
        self.found: Found | None = None

    def find(self, key: PrefixKey, request: Request, adapter: str) -> None:
        """Look the request up in both views."""
        self.found = None
        tokens = request.tokens
        if not self.exact.trusted or tokens is None or key.unit == "none":
            return
        if not request.reads_cache:
            return
        booked, each = super().blocks_of(key), self.block_tokens(key.unit)
        hits, chains = self.exact.hits(request, adapter, booked, each, self.trust.factors)
        self.found = hits, chains, len(tokens) // 4

    def lengths(self, key: PrefixKey) -> tuple[float, float]:
        tokens, _ = super().lengths(key)
        if self.found is None:
            return tokens, 1.0
        count = float(self.found[2])
        # Ids may end before the first image: then the estimate of the whole is much greater.
        return tokens if tokens > _CUT * count else count, 1.0

    @property
    def factors(self) -> array[float]:
        """Hits are told with what each view is believed already taken off."""
        return self._ones

    def blocks_of(self, key: PrefixKey) -> array[int] | None:
        """Tokens, here: of each slot by the view that decides for it."""
        if self.found is not None:
            return self.found[0]
        booked = super().blocks_of(key)
        if booked is None:
            return None
        if len(self._believed) != len(booked):
            self._believed = array("i", bytes(4 * len(booked)))
        each = self.block_tokens(key.unit)
        cost.whole_tokens(booked, each, self.trust.factors, self._believed)
        return self._believed

    def match(self, key: PrefixKey, candidates: CandidateColumns) -> None:
        tokens = self.blocks_of(key)
        if tokens is None:
            candidates.hit_tokens = candidates.no_hits
            return
        column = array("d", bytes(8 * len(tokens)))
        cost.hit_tokens(tokens, 1.0, candidates.prompt_tokens, None, column)
        candidates.hit_tokens = column

    def belief(self, slot: int, request: Request) -> float:
        if request.tokens is not None and self.exact.decides(slot, request.token_features):
            return self.exact.belief(slot)
        return self.trust.factors[slot]

    def said(self, slot: int, request: Request, adapter: str) -> tuple[str, str]:
        why = self.exact.why(slot)
        if why is None:
            return "approximate", "no events"
        if why:
            return "approximate", why
        if request.tokens is None:
            return "approximate", "token ids are not known"
        if not self.exact.decides(slot, request.token_features):
            return "approximate", "its tokenizer is not proven equal"
        gpu, cpu, far = self.exact.tiers(request, adapter, slot)
        return "exact", f"gpu {gpu}, cpu {cpu - gpu}, disk {far - cpu} tokens"

    def facts(self, replica: Replica) -> Facts:
        why = self.exact.why(replica.slot)
        block = self.exact.intake.block_size(replica.slot) if why == "" else 0
        known = self.capacity_tokens(replica) is not None
        return Facts(exact=why == "", why=why or None, event_block=block, capacity_known=known)

    @property
    def bytes_used(self) -> int:
        return super().bytes_used + self.exact.bytes_used

    @property
    def blocks(self) -> int:
        return super().blocks + self.exact.tree.blocks

    def is_free(self, slot: int) -> bool:
        return super().is_free(slot) and self.exact.is_free(slot)

    def _on_cleared(self, slot: int, restarted: bool) -> None:
        """Its events say that the cache is empty: what was sent there is gone as well."""
        if restarted:
            self.trust.reset(slot)
        for index in self._indexes.values():
            index.clear(slot)


class ExactLane(Lane):
    """Decisions of a pool with events."""

    view_type = MixedView

    @property
    def wants_tokens(self) -> bool:  # type: ignore[override]
        """Some replica's events are trusted."""
        return bool(self.mixed.exact.trusted)

    @property
    def mixed(self) -> MixedView:
        """The view, with its type."""
        return cast(MixedView, self.view)

    def look(self, prepared: Prepared, now: float) -> tuple[float, str]:
        view = self.mixed
        fresh = view.found is None and self._uses_view
        if fresh:
            view.find(prepared.key, prepared.request, prepared.target.adapter)
        exact = view.found is not None
        tokens, name = super().look(prepared, now)
        if fresh:
            view.found = None
        return tokens, "exact" if exact else name

    def decide(self, prepared: Prepared, now: float, rand: int) -> Decision:
        view = self.mixed
        if self._uses_view:
            view.exact.expire(now)
            view.find(prepared.key, prepared.request, prepared.target.adapter)
        found = view.found
        try:
            decision = super().decide(prepared, now, rand)
        finally:
            view.found = None
        request, slot = prepared.request, decision.choices[0]
        number = decision.ticket & _TICKET_MASK
        opened = self._open[number]
        if decision.view != "none":
            opened.raw_hit /= view.belief(slot, request)
        if found is None:
            return decision
        exact = view.exact
        exact.opened(number, found[1])
        if exact.decides(slot, request.token_features):
            decision = msgspec.structs.replace(decision, view="exact")
            opened.decision, opened.epoch = decision, exact.epoch(slot)
        return decision

    def _move(self, opened: Open, number: int, slot: int) -> None:
        super()._move(opened, number, slot)
        opened.raw_hit /= self.mixed.belief(slot, opened.request)

    def _teach(self, opened: Open, slot: int, cached: int, prompt: int, now: float) -> None:
        """Each view by its own predictions; one made of a cache that was lost since by none."""
        request, exact = opened.request, self.mixed.exact
        exactly = request.tokens is not None and exact.decides(slot, request.token_features)
        if opened.decision.view != "exact":
            if not exactly:
                super()._teach(opened, slot, cached, prompt, now)
        elif exactly and slot == opened.decision.choices[0] and opened.epoch == exact.epoch(slot):
            exact.answered(slot, opened.raw_hit, cached, prompt, now)

    def sent(self, ticket: int, slot: int, now: float) -> None:
        super().sent(ticket, slot, now)
        number = ticket & _TICKET_MASK
        opened = self._open.get(number)
        if opened is not None and opened.sent_to == slot:
            self.mixed.exact.sent(number, slot, now)

    def first_token(self, ticket: int, now: float) -> float:
        self.mixed.exact.settled(ticket & _TICKET_MASK, now)
        return super().first_token(ticket, now)

    def close(self, ticket: int, outcome: Outcome, now: float) -> bool:
        self.mixed.exact.settled(ticket & _TICKET_MASK, now)
        return super().close(ticket, outcome, now)

    def maintain(self, now: float, older_than: float, budget_us: int) -> bool:
        exact = self.mixed.exact
        remains = super().maintain(now, older_than, budget_us)
        exact.keep_only(self._open, now)
        return exact.maintain(now, budget_us) or remains
