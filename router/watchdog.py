"""Does what we predict come true? Names the likely cause where it lastingly does not. Floor 3.

An index whose keys never match an engine's cache fails in silence: every request is answered, only
slower. So per replica predicted hit tokens are held against what the engine says: `cached_tokens`
of answers, and the growth of its own counters of prefix-cache queries and hits between scrapes.
Sums are kept by trait (adapter, salt, chat, exact view), because which requests disagree says why.

A finding needs evidence (`LEAST_TOKENS` tokens in `LEAST_REQUESTS` requests) and to last: it
becomes a doubt in the second look in a row, `LOOK_S` apart, and goes with the first look that has
evidence against it. Predictions are the raw ones, before trust scales them down: trust repairs the
decision and would hide the cause. Never changes a decision.

    promised   predicted, not there     the engine evicts sooner, or the index matches too much
    missed     there, not predicted     the index does not match what the engine has
    unknown    the engine tells neither cached tokens nor counters

Cost: about 0.6 us an answer; a look takes about 5 us a replica.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from warmlane.router.pool import Pool, Replica
from warmlane.router.types import Doubt, Kind, LoadSnapshot, Request

log = logging.getLogger("warmlane.watchdog")

LOOK_S: Final = 10.0  # between two looks at one replica
LASTING: Final = 2  # looks in a row that find the same
LEAST_TOKENS: Final = 4_096.0
LEAST_REQUESTS: Final = 8
# Below this part of the other side a prediction is not a poor one but a wrong one. Peers' silent
# failures were exact zeros; chance overlap of unrelated prompts stays below a tenth.
WRONG: Final = 0.25
# Evidence that is too little for a finding fades by this factor a look, so that old news goes.
FADE: Final = 0.5
# Queries of the engine's cache beyond this multiple of ours are other people's traffic.
OTHERS: Final = 1.5

ADAPTER, SALT, CHAT, EXACT = 1, 2, 4, 8


# What to do about each cause; docs/exact.md and docs/proxy.md have the long form.
ADVICE: Final = {
    "no_truth": "start the engine with --enable-prompt-tokens-details; nothing can be checked",
    "caching_off": "the engine looks nothing up: is it started with --no-enable-prefix-caching?",
    "block_size": "events and metrics tell different block sizes: hybrid or context-parallel "
    "caches; set kv_events: off for this pool",
    "tokenizer": "the engine makes other token ids: point tokenizer at the model's own files",
    "template": "chats alone disagree: the engine renders another chat template",
    "adapter": "requests with an adapter alone disagree: same name, another path or version?",
    "salt": "salted requests alone disagree: does something on the way drop cache_salt?",
    "events": "blocks left the engine unheard: check its event and replay endpoints (doctor)",
    "silent_events": "its event socket is open and tells no block: is it another engine's?",
    "not_trusted": "its events are not used, and what was sent does not tell what it has (doctor)",
    "capacity": "its cache size is unknown: set capacity_tokens",
    "eviction": "it keeps less than its size says: other traffic fills it, or blocks are pinned",
    "others": "it has what this router did not send: other routers, or prompts written otherwise",
}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a view knows about one replica besides the numbers.

    exact: its events decide. why: why they do not; None: it has none. event_block: block size
    that its events tell, 0 none yet. capacity_known: somebody told the size of its cache.
    """

    exact: bool = False
    why: str | None = None
    event_block: int = 0
    capacity_known: bool = True


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine's own metrics said meanwhile. counts: it has the counters at all.

    queries, hits: growth in tokens. scrapes: how often they were read. block: its block size.
    """

    counts: bool = False
    queries: float = 0.0
    hits: float = 0.0
    scrapes: int = 0
    block: int = 0


class Sums(msgspec.Struct):
    """Answers of one trait."""

    requests: float = 0.0
    prompt: float = 0.0
    predicted: float = 0.0
    cached: float = 0.0

    def add(self, other: Sums) -> None:
        self.requests += other.requests
        self.prompt += other.prompt
        self.predicted += other.predicted
        self.cached += other.cached

    def fade(self, factor: float) -> None:
        self.requests *= factor
        self.prompt *= factor
        self.predicted *= factor
        self.cached *= factor


class _Seen:
    """One replica's evidence since its last finding."""

    __slots__ = ("finding", "hits", "last", "name", "queries", "scrapes", "times", "told", "untold")

    def __init__(self, name: str) -> None:
        self.name = name
        self.finding = ""
        self.times = 0
        self.last: LoadSnapshot | None = None
        self.begin()

    def begin(self) -> None:
        """From nothing."""
        self.told: dict[int, Sums] = {}  # by trait: answers with cached tokens
        self.untold = Sums()  # answers without
        self.queries = self.hits = 0.0
        self.scrapes = 0

    def fade(self) -> None:
        for sums in (*self.told.values(), self.untold):
            sums.fade(FADE)
        self.queries *= FADE
        self.hits *= FADE

    def count(self, load: LoadSnapshot | None) -> None:
        """Growth of the engine's counters since the last look; a restart begins anew."""
        before, self.last = self.last, load
        if load is None or before is None or load.taken_at == before.taken_at:
            return
        self.scrapes += 1
        queries = (load.prefix_queries or 0.0) - (before.prefix_queries or 0.0)
        if queries < 0:
            self.begin()
            return
        self.queries += queries
        self.hits += max(0.0, (load.prefix_hits or 0.0) - (before.prefix_hits or 0.0))

    def engine(self) -> Engine:
        load = self.last
        if load is None:
            return Engine()
        counts = load.prefix_queries is not None and load.prefix_hits is not None
        return Engine(
            counts=counts,
            queries=self.queries,
            hits=self.hits,
            scrapes=self.scrapes,
            block=load.block_size or 0,
        )


class Finding(msgspec.Struct, frozen=True):
    """One look's result. kind: "" (agrees), promised, missed, unknown."""

    kind: str
    cause: str = ""
    predicted: float = 0.0
    actual: float = 0.0


class Watchdog:
    """One pool's. facts: of a slot, from the view."""

    def __init__(self, pool: Pool, facts: Callable[[Replica], Facts]) -> None:
        self.pool = pool
        self._facts = facts
        self._seen: dict[int, _Seen] = {}
        self._next = 0.0

    def answered(
        self,
        slot: int,
        traits: int,
        predicted: float,
        cached: float | None,
        prompt: float,
        requests: float = 1.0,
    ) -> None:
        """A good answer. traits: ADAPTER | SALT | CHAT | EXACT; cached: None when it told none.

        requests: the numbers are sums over so many answers.
        """
        seen = self._seen.get(slot)
        if seen is None:
            replica = self.pool.replicas[slot]
            if replica is None:
                return
            seen = self._seen[slot] = _Seen(replica.name)
        if cached is None:
            sums, cached = seen.untold, 0
        else:
            found = seen.told.get(traits)
            sums = found if found is not None else seen.told.setdefault(traits, Sums())
        sums.requests += requests
        sums.prompt += prompt
        sums.predicted += predicted
        sums.cached += cached

    def look(self, now: float) -> None:
        """Judge every replica, at most each LOOK_S; one log line per change."""
        if now < self._next:
            return
        self._next = now + LOOK_S
        for slot, seen in list(self._seen.items()):
            replica = self.pool.replicas[slot]
            if replica is None or replica.name != seen.name:
                del self._seen[slot]
                continue
            self._look(replica, seen)

    def _look(self, replica: Replica, seen: _Seen) -> None:
        seen.count(replica.load)
        finding = judge(seen.told, seen.untold, seen.engine(), self._facts(replica))
        if finding is None:
            seen.fade()
            return
        key = f"{finding.kind} {finding.cause}"
        seen.times = seen.times + 1 if key == seen.finding else 1
        seen.finding = key
        seen.begin()
        if not finding.kind:
            self._settle(replica, None)
        elif seen.times >= LASTING:
            self._settle(replica, finding)

    def _settle(self, replica: Replica, finding: Finding | None) -> None:
        before = replica.doubt
        if finding is None:
            if before is not None:
                replica.doubt = None
                log.info(
                    "event=prediction_agrees pool=%s replica=%s before=%s",
                    self.pool.name,
                    replica.name,
                    before.cause,
                )
            return
        doubt = Doubt(
            kind=finding.kind,
            cause=finding.cause,
            predicted_tokens=int(finding.predicted),
            actual_tokens=int(finding.actual),
            advice=ADVICE[finding.cause],
        )
        replica.doubt = doubt
        if before is None or (before.kind, before.cause) != (doubt.kind, doubt.cause):
            log.warning(
                "event=prediction_doubt pool=%s replica=%s kind=%s cause=%s predicted_tokens=%d "
                'actual_tokens=%d advice="%s"',
                *(self.pool.name, replica.name, doubt.kind, doubt.cause),
                *(doubt.predicted_tokens, doubt.actual_tokens, doubt.advice),
            )


def traits_of(request: Request, adapter: str, view: str) -> int:
    """What of a request may make its prediction right or wrong."""
    chat = request.kind is not Kind.COMPLETIONS
    return (
        (ADAPTER if adapter else 0)
        | (SALT if request.salt else 0)
        | (CHAT if chat else 0)
        | (EXACT if view == "exact" else 0)
    )


def judge(told: dict[int, Sums], untold: Sums, engine: Engine, facts: Facts) -> Finding | None:
    """What the evidence says; None: too little of it.

    Answers are better evidence than counters, which hold the traffic of others too.
    """
    whole = Sums()
    for sums in told.values():
        whole.add(sums)
    if whole.requests >= LEAST_REQUESTS and max(whole.predicted, whole.cached) >= LEAST_TOKENS:
        return _by_answers(told, whole, engine, facts)
    if untold.requests < LEAST_REQUESTS or untold.prompt < LEAST_TOKENS:
        return None
    if engine.scrapes and not engine.counts:
        return Finding("unknown", "no_truth")
    return _by_counters(untold, engine, facts) if engine.scrapes else None


def _by_answers(told: dict[int, Sums], whole: Sums, engine: Engine, facts: Facts) -> Finding:
    for bit, cause in ((ADAPTER, "adapter"), (SALT, "salt"), (CHAT, "template")):
        with_it, without = _split(told, bit)
        if _enough(with_it) and _enough(without) and not _kind(without.predicted, without.cached):
            kind = _kind(with_it.predicted, with_it.cached)
            if kind:
                return Finding(kind, cause, with_it.predicted, with_it.cached)
    kind = _kind(whole.predicted, whole.cached)
    if not kind:
        return Finding("")
    off = kind == "promised" and engine.counts and engine.scrapes and not engine.queries
    cause = "caching_off" if off else _cause(kind, engine, facts)
    return Finding(kind, cause, whole.predicted, whole.cached)


def _by_counters(untold: Sums, engine: Engine, facts: Facts) -> Finding | None:
    """Our answers told nothing: only their sums can be held against the engine's."""
    predicted, queries, hits = untold.predicted, engine.queries, engine.hits
    if queries <= 0.0:
        # Prompts went there, and nothing was looked up in any cache.
        return Finding("promised", "caching_off", predicted, 0.0)
    others = queries - untold.prompt if queries > OTHERS * untold.prompt else 0.0
    if predicted >= LEAST_TOKENS and hits < WRONG * predicted:
        return Finding("promised", _cause("promised", engine, facts), predicted, hits)
    ours = max(0.0, hits - others)  # as if every token of the others were a hit
    if ours >= LEAST_TOKENS and predicted < WRONG * ours:
        return Finding("missed", _cause("missed", engine, facts), predicted, ours)
    return Finding("") if not others and max(predicted, hits) >= LEAST_TOKENS else None


def _cause(kind: str, engine: Engine, facts: Facts) -> str:
    """The likeliest cause of a disagreement that all kinds of requests share."""
    if facts.exact:
        if engine.block and facts.event_block and engine.block != facts.event_block:
            return "block_size"
        if kind == "missed":
            return "tokenizer" if facts.event_block else "silent_events"
        return "events"
    if kind == "promised":
        return "eviction" if facts.capacity_known else "capacity"
    return "others" if facts.why is None else "not_trusted"


def _split(told: dict[int, Sums], bit: int) -> tuple[Sums, Sums]:
    with_it, without = Sums(), Sums()
    for trait, sums in told.items():
        (with_it if trait & bit else without).add(sums)
    return with_it, without


def _enough(sums: Sums) -> bool:
    return (
        sums.requests >= LEAST_REQUESTS / 2 and max(sums.predicted, sums.cached) >= LEAST_TOKENS / 2
    )


def _kind(predicted: float, actual: float) -> str:
    if actual < WRONG * predicted:
        return "promised"
    return "missed" if predicted < WRONG * actual else ""
