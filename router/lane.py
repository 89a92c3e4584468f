"""One pool at work: decides, reserves, and hears what became of each request. Floor 4.

Joins the pool, its decider and its view of the caches, and keeps one record per open ticket, so
that later events need the ticket alone. Late, repeated and missing events are legal: the ledger
counts them, and a record whose ticket nobody closes goes by age.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from warmlane._core.desk import Desk, Lead
from warmlane._core.hashing import root_key
from warmlane._core.ledger import TICKET_BITS, LedgerFull
from warmlane.router.catalog import Target
from warmlane.router.config import Config, PoolConfig
from warmlane.router.decide import LAST_RESORT, Decider
from warmlane.router.errors import NoReplica
from warmlane.router.lane_open import Chosen, Named, Open, Recording, tickets_full
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool
from warmlane.router.prefix import PrefixKey, head_key, next_turn
from warmlane.router.registry import Parts
from warmlane.router.types import Decision, Outcome, Request, Rest
from warmlane.router.view import CacheView
from warmlane.router.watchdog import CHAT, Watchdog, traits_of

if TYPE_CHECKING:
    from warmlane._core.leads import Picked
    from warmlane.router.admission import Gate

_MEAN_STEP: Final = 0.02  # exponential mean over about the last 50 answers
_LENGTH_PORTION: Final = 4096  # tokens
_TICKET_MASK: Final = (1 << TICKET_BITS) - 1
_PARTS: Final = ("policy", "scorers", "filters", "picker")


class Prepared(msgspec.Struct, eq=False):
    """A request with its lane, its engine-side names and its prefix key."""

    request: Request
    target: Target
    lane: Lane
    key: PrefixKey


class Lane(Desk):
    """Decisions and tickets of one pool. `number` is in the high bits of its tickets."""

    view_type: type[CacheView] = CacheView
    wants_tokens = False  # would a decision look up the prompt's token ids?
    last_resort = True  # ask those who may be well all the same when nobody is ready; by the face
    gate: Gate | None = None  # with admission

    def __init__(
        self, number: int, pool: Pool, parts: Parts, config: Config, metrics: Metrics
    ) -> None:
        self.number = number
        self.pool = pool
        self._name = pool.name
        self.view = self.view_type(pool, config.index, config.limits.replicas)
        self.output_tokens = float(config.index.output_tokens)
        self._has_view = config.index.view != "none"
        self._metrics = metrics
        self._high = number << TICKET_BITS
        self._open: dict[int, Open] = {}
        self.recorder: Recording | None = None  # hears of each request that was closed
        self._ledger = pool.ledger
        self._trust = self.view.trust
        self.watchdog = Watchdog(pool, self.view.facts)
        self._use(parts, config.zone)

    def _use(self, parts: Parts, zone: str) -> None:
        """Decide with these parts from now on."""
        pool = self.pool
        self.decider = Decider(pool, parts, zone)
        pool.price = self.decider.price
        self._uses_view = self.decider.needs_hits and self._has_view
        mix = self._mix = self.decider.mix
        if mix is not None:
            mix.bind(
                pool.ledger.requests,
                pool.ledger.prefill_tokens,
                pool.ledger.decode_tokens,
                pool.placed_tokens,
                pool.kv_usage,
                pool.foreign.requests,
                pool.foreign.tokens,
                pool.foreign.kv_tokens,
                self.view.factors,
            )
        # An exact view asks for more than this path knows.
        self._is_plain = self._uses_view and self.view_type is CacheView
        self.ratio = self.view.bytes_per_token.value
        self.furnish(pool.ledger, self._trust, pool, self.view.text_block_bytes, mix)

    def needs_parts(self, config: PoolConfig) -> bool:
        """Whether this config of its pool asks for other parts than it has."""
        return any(getattr(self.pool.config, it) != getattr(config, it) for it in _PARTS)

    def follow(self, config: PoolConfig, parts: Parts | None, zone: str) -> None:
        """Another config of the same pool. parts: None keeps those it has."""
        old = self.pool.follow(config)
        if parts is not None:
            self._use(parts, zone)
        if (config.capacity_tokens, config.tier_tokens) != (old.capacity_tokens, old.tier_tokens):
            self.view.resize()

    @property
    def open_tickets(self) -> int:
        """Tickets that nobody closed yet."""
        return self._ledger.open_tickets

    def look(self, prepared: Prepared, now: float) -> tuple[float, str]:
        """Candidates with their hits, before filters: (prompt tokens, view)."""
        target, key = prepared.target, prepared.key
        view = self.view
        prompt_tokens, _ = view.lengths(key)
        candidates = self.decider.begin(target.model, target.adapter, prompt_tokens, now)
        if self._uses_view and key.unit != "none" and prepared.request.reads_cache:
            view.match(key, candidates)
            return prompt_tokens, "approximate"
        candidates.hit_tokens = candidates.no_hits
        return prompt_tokens, "none"

    def decide(self, prepared: Prepared, now: float, rand: int) -> Decision:
        """Choose and reserve. Raises NoReplica."""
        request, target, key = prepared.request, prepared.target, prepared.key
        view, pool, adapter = self.view, self.pool, target.adapter
        looks = self._uses_view and key.unit != "none" and request.reads_cache
        prompt_tokens, each = view.lengths(key)
        if self.apart:
            rand = head_key(key, rand)
        fallback = ""
        try:
            if self._mix is not None and not adapter and request.subset is None:
                pool.freshen(now)
                blocks = view.blocks_of(key) if looks else None
                chosen = self.decider.quick(
                    request, target.model, blocks, each, prompt_tokens, rand
                )
            else:
                chosen = self._decide_slowly(prepared, now, rand)
                fallback = self.decider.fallback
                self.decider.placed(prompt_tokens, chosen[2])
        except NoReplica as nobody:
            if not self.last_resort:
                raise
            chosen = self._last_resort(prepared, now, rand, nobody)
            fallback = LAST_RESORT
        choices, hits, hit, raw_hit = chosen
        first, uncached = choices[0], prompt_tokens - hit
        output = self.output_tokens
        if request.max_tokens is not None and request.max_tokens < output:
            output = request.max_tokens
        try:
            ticket = self._ledger.open(first, uncached, prompt_tokens, now, output)
        except LedgerFull:
            self._metrics.limit_reached("tickets")
            raise tickets_full(self.pool) from None
        pool.placed(first, uncached)
        decision = Decision(
            ticket=self._high | ticket,
            pool=self._name,
            choices=choices,
            hit_tokens=hits,
            prompt_tokens=int(prompt_tokens),
            view="approximate" if looks else "none",
            model="" if target.engine_name == request.model else target.engine_name,
            adapter=adapter,
            fallback=fallback,
        )
        self._open[ticket] = Open(decision, request, key, raw_hit, first, target)
        if adapter:
            state = pool.adapters.opened(first, adapter, now)
            self._metrics.count("warmlane_adapter_requests_total", self._name, state)
        return decision

    # For the compiled path

    def lead(
        self, name: str, target: Target, side: Named, link_of: Callable[[int], object]
    ) -> Lead | None:
        """What `Desk` needs to decide requests for this model name; None: they come to `decide`.

        Holds until the pool changes, or admission begins to look at requests.
        """
        looked_at = self.recorder is not None or (self.gate is not None and self.gate.active)
        if self._mix is None or not self._is_plain or looked_at:
            return None
        if target.adapter or target.engine_name != name:
            return None
        mask = self.decider.mask_of(target.model)
        if mask is None:
            return None
        self.set_tree(self.view.text_tree())
        root = root_key(target.model)
        return Lead(self, side, target, mask, root, self._metrics, link_of, self._name_of)

    def adopt(self, picked: Picked, request: Request) -> Decision:
        """The decision of a compiled course that ends as an ordinary request: its ticket is ours
        from now on."""
        target: Target = picked.lead.target
        decision = Decision(
            ticket=self._high | picked.ticket,
            pool=self._name,
            choices=picked.choices,
            hit_tokens=picked.hit_tokens,
            prompt_tokens=picked.prompt_tokens,
            view="approximate",
        )
        slot = decision.choices[0]
        size, block = picked.prompt_size, self.view.text_block_bytes
        key = PrefixKey(picked.keys, "text", size, block, picked.root)
        opened = Open(decision, request, key, picked.raw_hit, slot, target)
        if picked.sent:
            opened.sent_to = slot
        self._open[picked.ticket] = opened
        return decision

    def _name_of(self, slot: int) -> str:
        replica = self.pool.replicas[slot]
        assert replica is not None, "a slot with an open ticket is never freed"
        return replica.name

    def _decide_slowly(self, prepared: Prepared, now: float, rand: int) -> Chosen:
        """Part by part, as `explain` does; a part that fails is counted. Raises NoReplica."""
        self.look(prepared, now)
        decider = self.decider
        count = decider.decide(prepared.request, rand)
        if decider.fallback:
            self._metrics.fallback(self.pool.name, decider.fallback.rpartition(": ")[0])
        return self._chosen(tuple(decider.order[:count]))

    def _last_resort(self, prepared: Prepared, now: float, rand: int, why: NoReplica) -> Chosen:
        """Nobody is ready: those who may be well all the same. Raises `why` without any."""
        self.look(prepared, now)
        choices = self.decider.last_resort(prepared.request, rand, why)
        self._metrics.last_resort(self._name, "decision")
        return self._chosen(choices)

    def _chosen(self, choices: tuple[int, ...]) -> Chosen:
        """With the hits of the last `look`."""
        hits = self.decider.candidates.hit_tokens
        hit = hits[choices[0]]
        whole = tuple([int(hits[slot]) for slot in choices])
        return choices, whole, hit, hit / self.view.factors[choices[0]]

    def rest(self, ticket: int, now: float, wanted: Rest) -> tuple[int, ...]:
        """Whom else the pool has for this open request; see `Decider.rest`."""
        opened = self._open.get(ticket & _TICKET_MASK)
        if opened is None:
            return ()
        target, tokens = opened.target, opened.decision.prompt_tokens
        self.decider.begin(target.model, target.adapter, tokens, now)
        try:
            return self.decider.rest(opened.request, ticket, wanted)
        except NoReplica:  # a filter failed, as the log says
            return ()

    def sent(self, ticket: int, slot: int, now: float) -> None:
        """The request's bytes went to `slot`: from now on its prefix is expected there.

        A slot whose replica was removed meanwhile and swept is empty: such news is ignored.
        """
        opened = self._open.get(ticket & _TICKET_MASK)
        if opened is None or self.pool.replicas[slot] is None:
            return
        if opened.slot != slot:
            self._move(opened, ticket & _TICKET_MASK, slot)
        if opened.sent_to != slot:
            opened.sent_to = slot
            key = opened.key
            if self._uses_view and key.unit != "none":
                self.view.record(slot, key.unit, key.keys)

    def moved(self, ticket: int, slot: int, now: float) -> None:
        """The request goes to another replica instead: its reserved work moves there."""
        opened = self._open.get(ticket & _TICKET_MASK)
        if opened is not None and opened.slot != slot and self.pool.replicas[slot] is not None:
            self._move(opened, ticket & _TICKET_MASK, slot)

    def learn_pace(self, ticket: int, now: float) -> None:
        """A first token was seen, not predicted: what it says of its replica's pace."""
        opened = self._open.get(number := ticket & _TICKET_MASK)
        if opened is not None and opened.request.stream and self.decider.price is not None:
            self.decider.price.began(self._ledger, number, opened.slot, now)

    def first_token(self, ticket: int, now: float) -> float:
        """Prefill is done. Seconds since the decision, -1 when late or repeated."""
        number = ticket & _TICKET_MASK
        seconds = self._ledger.first_token(number, now)
        if seconds >= 0:
            self._metrics.ttft(self._name, seconds)
            opened = self._open.get(number)
            if opened is not None:
                opened.ttft_s = seconds
                if opened.decision.view == "approximate":
                    self._trust.sent(opened.slot, opened.raw_hit, opened.decision.prompt_tokens)
            if self.gate is not None:
                self.gate.stirred()
        return seconds

    def progress(self, ticket: int, output_tokens: int) -> None:
        """`output_tokens` generated so far."""
        self._ledger.progress(ticket & _TICKET_MASK, output_tokens)

    def close(self, ticket: int, outcome: Outcome, now: float) -> bool:
        """The end of it, also on error and cancel. False when it was closed before."""
        number = ticket & _TICKET_MASK
        opened = self._open.pop(number, None)
        if opened is not None and opened.request.stream:
            self.decider.streamed(number, opened.slot, outcome, now)
        slot, seconds = self._ledger.close(number, now)
        if opened is None or slot < 0:
            return False
        self._metrics.duration(self._name, seconds)
        if self.gate is not None:
            self.gate.closed(number, opened.request, outcome.output_tokens, now)
        ok, adapter = outcome.status == "ok", opened.decision.adapter
        if adapter:
            held_s = seconds - max(0.0, opened.ttft_s) if ok else None
            self.pool.adapters.closed(slot, adapter, held_s)
        if ok:
            self._learn(opened, slot, outcome, now)
        if self.recorder is not None:
            self.recorder(opened, slot, outcome, seconds, now)
        return True

    def maintain(self, now: float, older_than: float, budget_us: int) -> bool:
        """Close what nobody closed, sweep the index, free slots. True while work remains."""
        leaked = self._ledger.expire(older_than)
        for number in leaked:
            opened = self._open.pop(number, None)
            if opened is not None:
                self.pool.adapters.closed(opened.slot, opened.decision.adapter, None)
        if leaked:
            self._metrics.leaked_tickets(len(leaked))
        for slot, told, chat, requests, prompt, predicted, cached in self.take_evidence():
            traits, actual = CHAT if chat else 0, cached if told else None
            self.watchdog.answered(slot, traits, predicted, actual, prompt, requests)
        self.decider.tick(now, self.output_tokens)
        remains = self.view.maintain(budget_us)
        self.pool.reap(self.view.is_free)
        self.pool.fade(now)
        self.watchdog.look(now)
        if self.gate is not None:
            self.gate.tick(now)
        return remains

    def _move(self, opened: Open, number: int, slot: int) -> None:
        hit = opened.decision.hit_on(slot)
        self._ledger.moved(number, slot, opened.decision.prompt_tokens - hit)
        if opened.decision.adapter:
            self.pool.adapters.moved(opened.slot, slot, opened.decision.adapter)
        opened.slot = slot
        opened.raw_hit = hit / self.view.factors[slot]

    def _learn(self, opened: Open, slot: int, outcome: Outcome, now: float) -> None:
        """What a good answer teaches: lengths, trust, and the text of the next turn."""
        decision, key = opened.decision, opened.key
        alone = opened.request.samples == 1  # else the last sample's, which hits the first one's
        output, cached = outcome.output_tokens, outcome.cached_tokens if alone else None
        if output is not None:
            self.output_tokens += _MEAN_STEP * (output - self.output_tokens)
        if decision.view == "none":
            return
        is_text, prompt = key.unit == "text", outcome.prompt_tokens
        if prompt is None:
            prompt = decision.prompt_tokens
        elif is_text:
            self.learned_bytes += key.size
            self.learned_tokens += prompt
            if self.learned_tokens >= _LENGTH_PORTION:
                self._learn_length()
        if cached is not None:
            self._teach(opened, slot, cached, prompt, now)
        self._metrics.hit(self._name, self._name_of(slot), decision.hit_on(slot), cached, prompt)
        if alone:
            traits = traits_of(opened.request, decision.adapter, decision.view)
            self.watchdog.answered(slot, traits, opened.raw_hit, cached, prompt)
        if is_text and outcome.text:
            self.view.record(slot, key.unit, next_turn(opened.request, key, outcome.text))
        elif output:
            self.view.charge(slot, key.unit, output)

    def _teach(self, opened: Open, slot: int, cached: int, prompt: int, now: float) -> None:
        self._trust.answered(slot, opened.raw_hit, cached, prompt, now)

    def _learn_length(self) -> None:
        """Bytes per token, told on in portions: a sample of a few thousand tokens is a good one."""
        self.view.learn_length(self.learned_bytes, self.learned_tokens)
        self.learned_bytes = self.learned_tokens = 0
        self.ratio = self.view.bytes_per_token.value

    def _charge(self, slot: int, tokens: int) -> None:
        self.view.charge(slot, "text", tokens)
