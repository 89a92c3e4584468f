"""Does the engine's cache do what we predict? Two requests of one prompt, watched. Floor 6.

The prompt is made of token ids, so that no tokenizer stands between the prediction and the truth.
The events go through the real intake (`feeds.kv_events`); what it then predicts for the second
request is held against `cached_tokens` of its answer.
"""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import msgspec

from warmlane._core.hashing import root_key, token_keys
from warmlane.router.config import PoolConfig
from warmlane.router.doctor_visit import BLOCKS, REPLAY_WHOLE, Visit
from warmlane.router.exact import ExactView
from warmlane.router.feeds.client import EngineError
from warmlane.router.feeds.kv_events import Hub, KvFeed
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool
from warmlane.router.types import ReplicaState

EVENTS_S: Final = 3.0  # an event comes about 4 ms after its step; a loaded engine is slower
JOIN_S: Final = 1.0  # a subscription takes a moment to reach the publisher
IDS: Final = (10, 120)  # in the vocabulary of every model, and no special tokens
FLAG: Final = "--enable-prompt-tokens-details"
EVENTS_FLAG: Final = (
    '--kv-events-config \'{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557", '
    '"replay_endpoint": "tcp://*:5558"}\''
)


class Ears:
    """The intake for one replica, as the running router has it."""

    def __init__(self, visit: Visit) -> None:
        setting = visit.patient.kv_events
        self.ranks = 1
        self.pool = Pool(PoolConfig(kv_events=setting), initial=ReplicaState.READY)
        member = self.pool.replicas[self.pool.add(visit.patient.spec, 0.0)]
        assert member is not None, "added"
        self.replica = member
        self.exact = ExactView(self.pool, 1)
        self.hub = Hub(monotonic)
        self.feed = KvFeed(
            self.pool,
            self.replica,
            self.exact,
            visit.session,
            self.hub,
            headers=dict(visit.patient.headers),
            metrics=Metrics(),
            split=self._split,
        )
        self._task = asyncio.create_task(self.feed.run())

    def _split(self, url: str, ranks: int) -> None:
        del url
        self.ranks = ranks

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.hub.close()

    @property
    def why(self) -> str:
        return self.exact.why(self.replica.slot) or ""

    def stats(self) -> dict[str, int]:
        return self.exact.intake.stats(self.replica.slot)

    def block(self) -> int:
        return self.exact.intake.block_size(self.replica.slot)

    def held_tokens(self, ids: list[int], adapter: str) -> int:
        """Leading tokens of a prompt that its events say are there."""
        size = self.block()
        if not size:
            return 0
        keys = token_keys(root_key("", adapter, ""), array("I", ids).tobytes(), size)
        found = [array("i", bytes(4)) for _ in range(3)]
        self.exact.tree.match(keys, *found)
        return int(found[2][0]) * size


async def cache(visit: Visit) -> None:
    """The whole examination of the cache; lines into `visit`."""
    if not visit.patient.generate:
        visit.say("cached-tokens", "skip", "--no-requests")
        visit.say("kv-events", "skip", "--no-requests")
        return
    ears = None if visit.patient.kv_events == "off" else Ears(visit)
    try:
        if ears is not None:
            await _joined(ears)
            if ears.ranks > 1:
                ears = await _first_rank(visit, ears)
        await _probe(visit, ears)
    finally:
        if ears is not None:
            await ears.close()


async def _joined(ears: Ears) -> None:
    await _until(lambda: ears.feed.source is not None or bool(_trouble(ears)), JOIN_S)
    await asyncio.sleep(JOIN_S / 2)


async def _first_rank(visit: Visit, ears: Ears) -> Ears:
    """Go on with rank 0, as the router does with each."""
    found = f"{ears.ranks} data-parallel ranks: each is a replica of its own; rank 0 is examined"
    visit.say("ranks", "ok", found)
    await ears.close()
    patient = visit.patient
    visit.patient = msgspec.structs.replace(
        patient,
        spec=msgspec.structs.replace(patient.spec, rank=0),
        headers={**patient.headers, "X-data-parallel-rank": "0"},
    )
    ears = Ears(visit)
    await _joined(ears)
    return ears


async def _probe(visit: Visit, ears: Ears | None) -> None:
    block = visit.block or 16
    ids = [random.randint(*IDS) for _ in range(BLOCKS * block + 3)]
    expected = BLOCKS * block
    if not await _generate(visit, ids, tell=True):
        return
    if ears is not None:
        await _until(lambda: ears.stats()["stored"] > 0, EVENTS_S)
    usage = await _generate(visit, ids)
    told = _cached(visit, usage, expected)
    if ears is None:
        visit.say("kv-events", "skip", "off in our config")
    else:
        # What was heard so far may be a replay of older blocks: these ones may be on their way.
        if told is not None and ears.stats()["stored"]:
            adapter = _adapter(visit)
            await _until(
                lambda: abs(ears.held_tokens(ids, adapter) - told) <= ears.block(), EVENTS_S
            )
        _events(visit, ears, ids, told)


def _adapter(visit: Visit) -> str:
    return visit.model if visit.model in visit.adapters else ""


async def _generate(visit: Visit, ids: list[int], *, tell: bool = False) -> dict[str, Any] | None:
    """One token for this prompt; its usage, or None after saying why not."""
    body = {"model": visit.model, "prompt": ids, "max_tokens": 1, "temperature": 0}
    began = monotonic()
    try:
        status, data = await visit.ask("/v1/completions", body)
    except EngineError as error:
        advice = "healthy and silent: is it paused, asleep or draining?"
        visit.say("answers", "fail", f"POST /v1/completions: {error}", advice)
        return None
    found = _decoded(data)
    if status != 200 or not isinstance(found.get("usage"), dict):
        what = str(found.get("error") or found)[:120]
        visit.say("answers", "fail", f"POST /v1/completions: {status} {what}", "read its log")
        return None
    choice = (found.get("choices") or [{}])[0]
    if choice.get("finish_reason") == "abort":
        advice = "it shuts down: take it out of the pool"
        visit.say("answers", "fail", "200 with finish_reason abort", advice)
        return None
    if tell:
        visit.say("answers", "ok", f"one token in {(monotonic() - began) * 1000:.0f} ms")
    usage: dict[str, Any] = found["usage"]
    return usage


def _cached(visit: Visit, usage: dict[str, Any] | None, expected: int) -> int | None:
    """What the second answer told of its cached tokens; None: nothing."""
    if usage is None:
        return None
    details = usage.get("prompt_tokens_details")
    told = details.get("cached_tokens") if isinstance(details, dict) else None
    if told is None:
        advice = f"start the engine with {FLAG}: predictions can then be checked request by request"
        visit.say("cached-tokens", "warn", "not in its answers", advice)
        return None
    if told == 0:
        advice = "prefix caching is off, or another replica answered (a balancer in between?)"
        visit.say("cached-tokens", "fail", "0 for a prompt sent a moment before", advice)
    elif told < expected:
        advice = "blocks are larger than its metrics say (hybrid or context-parallel caches)"
        visit.say("cached-tokens", "warn", f"{told} of {expected}", advice)
    else:
        visit.say("cached-tokens", "ok", f"{told} of {usage.get('prompt_tokens', '?')} tokens")
    return int(told)


def _events(visit: Visit, ears: Ears, ids: list[int], told: int | None) -> None:
    stats = ears.stats()
    if not stats["stored"]:
        trouble = _trouble(ears)
        off = any(sign in trouble for sign in ("off in the engine", "404", "not understood"))
        advice = f"start the engine with {EVENTS_FLAG}" if off else "check its endpoint and port"
        visit.say("kv-events", "warn", trouble or "no event in 3 s", advice)
        return
    visit.say("kv-events", "ok", f"{stats['stored']} blocks heard")
    if stats["broken"] or stats["odd"]:
        found = f"{stats['broken']} broken, {stats['odd']} odd events"
        visit.say("kv-decoding", "warn", found, "an engine version that is not known yet?")
    size = ears.block()
    if visit.block and size != visit.block:
        advice = "hits are counted by the events' size; the metrics' size is another cache group's"
        visit.say("block-size", "warn", f"events {size}, metrics {visit.block}", advice)
    else:
        visit.say("block-size", "ok", f"{size} tokens")
    held = ears.held_tokens(ids, _adapter(visit))
    if told is not None and abs(held - told) > size:
        advice = "the index would promise what is not there: keep kv_events: off for this engine"
        visit.say("kv-match", "fail", f"events say {held} tokens, the engine {told}", advice)
    elif not held:
        advice = "its events are understood and match nothing: please report this engine"
        visit.say("kv-match", "fail", "none of the prompt's blocks found by our keys", advice)
    else:
        visit.say("kv-match", "ok", f"{held} tokens found by our keys")
    _replay(visit, ears)


def _replay(visit: Visit, ears: Ears) -> None:
    source = ears.feed.source
    where = source.where.replay if source is not None else ""
    if not where:
        advice = "without replay_endpoint a gap or a restart of the router costs its whole view"
        visit.say("kv-replay", "warn", "no replay socket is known", advice)
        return
    numbers = tuple(int(part) for part in visit.version.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and numbers < REPLAY_WHOLE:
        advice = "replays beyond about 1,000 batches lose some before 0.33; gaps are asked again"
        visit.say("kv-replay", "ok", f"{where} ({advice})")
    else:
        visit.say("kv-replay", "ok", where)


def _trouble(ears: Ears) -> str:
    return "" if ears.feed.source is not None or ears.why == "joining" else ears.why


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


async def _until(done: Callable[[], bool], seconds: float) -> bool:
    """Wait for it, at most so long."""
    end = monotonic() + seconds
    while not done() and monotonic() < end:  # noqa: ASYNC110 - counters of the compiled intake
        await asyncio.sleep(0.02)
    return done()
