"""What `warmlane doctor` asks one engine over HTTP, and what each answer means. Floor 6.

Sends at most two requests that generate a token each. Reads nothing but what routing needs: health,
version, models, metrics, the tokens that came from cache, token ids, adapters, the clock.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any, Final, Literal

import aiohttp
import msgspec

from warmlane.router.feeds.client import EngineError, fetch
from warmlane.router.feeds.dialects import BY_NAME, Reading, detect, read
from warmlane.router.feeds.prom_text import label, samples
from warmlane.router.types import ReplicaSpec

Verdict = Literal["ok", "warn", "fail", "skip"]

MAX_BYTES: Final = 8_388_608
SKEW_S: Final = 2.0  # beyond it, times in logs of both sides cannot be laid side by side
BLOCKS: Final = 4  # of the probe's prompt
REPLAY_WHOLE: Final = (0, 33)  # before it replays lose batches silently beyond about 1,000
KNOWN: Final = ((0, 11), (0, 33))  # versions whose wire format is known


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One check of one replica. advice: what to change; "" when nothing."""

    replica: str
    check: str
    verdict: Verdict
    found: str
    advice: str = ""


class Patient(msgspec.Struct, frozen=True, kw_only=True):
    """One replica to be examined. headers: with its key. generate: may send two tiny requests."""

    spec: ReplicaSpec
    headers: Mapping[str, str] = {}
    kv_events: str = "auto"
    tokenizer: str = ""
    model: str = ""
    generate: bool = True
    timeout_s: float = 10.0


class Visit:
    """One examination: the lines so far, and the facts that others are compared with."""

    def __init__(self, patient: Patient, session: aiohttp.ClientSession) -> None:
        self.patient = patient
        self.session = session
        self.lines: list[Line] = []
        self.version = ""
        self.model = patient.model
        self.models: list[str] = []
        self.adapters: dict[str, str] = {}  # name -> path that the engine tells
        self.reading: Reading | None = None
        self.block = 0
        self.metrics = b""

    @property
    def name(self) -> str:
        return self.patient.spec.name

    def say(self, check: str, verdict: Verdict, found: str, advice: str = "") -> None:
        line = Line(replica=self.name, check=check, verdict=verdict, found=found, advice=advice)
        self.lines.append(line)

    async def ask(
        self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """GET, or POST with a body. Raises EngineError."""
        return await fetch(
            self.session,
            self.patient.spec.url + path,
            headers=dict(self.patient.headers if headers is None else headers),
            timeout_s=self.patient.timeout_s,
            max_bytes=MAX_BYTES,
            data=None if body is None else msgspec.json.encode(body),
        )

    async def asked(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and decoded JSON; (0, None) without an answer, (status, None) without JSON."""
        try:
            status, data = await self.ask(path, body)
        except EngineError:
            return 0, None
        try:
            return status, msgspec.json.decode(data)
        except msgspec.DecodeError:
            return status, None


async def reachable(visit: Visit) -> bool:
    """Health and the clock. False: nothing else is worth asking."""
    url = visit.patient.spec.url
    timeout = aiohttp.ClientTimeout(total=visit.patient.timeout_s)
    before = time.time()
    try:
        async with visit.session.get(f"{url}/health", timeout=timeout) as answer:
            await answer.read()
            status, date = answer.status, answer.headers.get("date", "")
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        why = f"{type(error).__name__} {error}".strip()
        visit.say("reachable", "fail", why, "check the URL, the network and that the engine runs")
        return False
    after = time.time()
    if status != 200:
        advice = "the engine is starting or dead: read its log"
        visit.say("reachable", "fail", f"GET /health: {status}", advice)
        return False
    visit.say("reachable", "ok", f"GET /health: 200 in {(after - before) * 1000:.0f} ms")
    _clock(visit, date, before, after)
    return True


def _clock(visit: Visit, date: str, before: float, after: float) -> None:
    try:
        theirs = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        visit.say("clock", "skip", "its answers carry no date")
        return
    # The header has whole seconds: it may be up to one behind.
    skew = max(theirs - after, before - theirs - 1.0, 0.0)
    found = f"within {max(1.0, skew):.0f} s of this machine's"
    if skew > SKEW_S:
        visit.say("clock", "warn", f"{skew:.0f} s off this machine's", "let both keep time by NTP")
    else:
        visit.say("clock", "ok", found)


async def identity(visit: Visit) -> bool:
    """Version, key and models. False: it does not let us in, or serves nothing."""
    status, data = await visit.asked("/version")
    visit.version = str(data.get("version", "")) if isinstance(data, dict) else ""
    _version(visit, status)
    try:
        status, raw = await visit.ask("/v1/models")
    except EngineError as error:
        visit.say("models", "fail", f"GET /v1/models: {error}", "read the engine's log")
        return False
    if not await _key(visit, status):
        return False
    try:
        cards = msgspec.json.decode(raw)["data"]
        for card in cards:
            if card.get("parent"):
                visit.adapters[card["id"]] = str(card.get("root") or "")
            else:
                visit.models.append(card["id"])
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        visit.say("models", "fail", f"GET /v1/models: {status}, not a list of models", "")
        return False
    return _models(visit)


def _version(visit: Visit, status: int) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", visit.version)
    if not numbers:
        visit.say("version", "warn", f"GET /version: {status}", "not vLLM? told by its metrics")
        return
    pair = int(numbers[1]), int(numbers[2])
    if KNOWN[0] <= pair <= KNOWN[1]:
        visit.say("version", "ok", visit.version)
    else:
        span = f"{KNOWN[0][0]}.{KNOWN[0][1]} to {KNOWN[1][0]}.{KNOWN[1][1]}"
        visit.say("version", "warn", visit.version, f"known are {span}: try the rest with care")


async def _key(visit: Visit, status: int) -> bool:
    given = bool(visit.patient.headers)
    if status in (401, 403):
        found = "the key is refused" if given else "it asks for a key"
        advice = "set engine_api_key_file (--engine-api-key-file) to the engine's --api-key"
        visit.say("api-key", "fail", f"{found} ({status})", advice)
        return False
    if given:
        try:
            bare, _ = await visit.ask("/v1/models", headers={})
        except EngineError:
            bare = 0
        asks = bare in (401, 403)
        found = "accepted" if asks else "accepted, but not asked for"
        visit.say("api-key", "ok", found)
    else:
        visit.say("api-key", "ok", "none is asked for")
    return True


def _models(visit: Visit) -> bool:
    wanted = visit.patient.model
    known = [*visit.models, *visit.adapters]
    if not visit.models:
        visit.say("models", "fail", "it lists no base model", "read the engine's log")
        return False
    if wanted and wanted not in known:
        advice = f"serve it (--served-model-name) or ask for one of: {', '.join(known)}"
        visit.say("models", "fail", f"{wanted} is not served", advice)
        return False
    visit.model = wanted or visit.models[0]
    more = f", adapters {', '.join(sorted(visit.adapters))}" if visit.adapters else ""
    visit.say("models", "ok", f"{', '.join(visit.models)}{more}")
    return True


async def metrics(visit: Visit) -> None:
    """Load, cache and what its flags show of themselves."""
    try:
        status, text = await visit.ask("/metrics")
    except EngineError as error:
        status, text = 0, str(error).encode()
    dialect = detect(text) if status == 200 else None
    if dialect is None:
        advice = "routing goes by its own counts alone: is the engine started with metrics on?"
        visit.say("metrics", "warn", f"GET /metrics: {status or text.decode()}", advice)
        return
    visit.metrics = text
    found = read(text, dialect, time.monotonic(), visit.patient.spec.rank)
    visit.reading = found
    if found is None:
        advice = "its queue and batch are not told: another version?"
        visit.say("metrics", "warn", f"{dialect.name}, without queue and batch", advice)
        return
    load = found.snapshot
    ranks = {label(each.labels, b"engine") for each in samples(text, b"vllm:num_requests_running")}
    # With `auto` the router takes the ranks apart by itself.
    apart = len(ranks) < 2 or visit.patient.spec.rank is not None
    apart = apart or visit.patient.kv_events == "auto"
    several = f", {len(ranks)} data-parallel ranks" if len(ranks) > 1 else ""
    visit.say(
        "metrics",
        "warn" if several and not apart else "ok",
        f"{dialect.name}: {load.running:g} running, {load.waiting:g} waiting{several}",
        "" if apart else "name each rank as a replica of its own (rank: 0, 1, ...)",
    )
    _cache(visit, text)
    if load.asleep:
        visit.say("awake", "fail", "the engine sleeps", "POST /wake_up, or take it out of the pool")


def _cache(visit: Visit, text: bytes) -> None:
    assert visit.reading is not None
    load = visit.reading.snapshot
    visit.block = load.block_size or 0
    if not load.block_size or not load.num_blocks:
        advice = "set capacity_tokens for this pool: the view assumes a size otherwise"
        visit.say("cache-size", "warn", "its metrics do not tell", advice)
    else:
        tokens = load.block_size * load.num_blocks
        visit.say(
            "cache-size", "ok", f"{load.num_blocks} blocks of {load.block_size}: {tokens} tokens"
        )
    info = samples(text, b"vllm:cache_config_info")
    told = label(info[0].labels, b"enable_prefix_caching") if info else None
    if told is not None and told.lower() == "false":
        advice = "start it without --no-enable-prefix-caching: there is nothing to route by"
        visit.say("prefix-caching", "fail", "it is off", advice)
    elif told is not None:
        algorithm = label(info[0].labels, b"prefix_caching_hash_algo") or "unknown"
        visit.say("prefix-caching", "ok", f"on, hashes by {algorithm}")
    if BY_NAME["vllm"].name == visit.reading.dialect and load.prefix_queries is None:
        advice = "the watchdog has no counters to hold predictions against"
        visit.say("counters", "warn", "no prefix-cache counters", advice)


async def adapters(visit: Visit) -> None:
    """LoRA: what is loaded, and whether more can be at run time. Sends no valid load request."""
    lora = samples(visit.metrics, b"vllm:lora_requests_info")
    if not visit.adapters and not lora:
        visit.say("lora", "skip", "no adapter, and LoRA is not switched on")
        return
    nameless = [name for name, root in visit.adapters.items() if not root]
    status, _ = await visit.asked("/v1/load_lora_adapter", {})
    runtime = "can be loaded at run time" if status in (400, 422) else "fixed at start"
    if nameless:
        advice = "its path is part of the engine's hashes: check that all replicas load the same"
        visit.say("lora", "warn", f"no path is told for {', '.join(nameless)}", advice)
    else:
        # The metric that names adapters in use comes with the first request for one.
        used = "in use or waiting told by metrics" if lora else "none asked for yet"
        visit.say("lora", "ok", f"{len(visit.adapters)} adapters, {runtime}, {used}")
