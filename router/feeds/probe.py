"""Asks one replica again and again whether it lives and which models it serves.

The first success turns JOINING into READY. Failed probes in a row eject, two good ones bring back,
but only what the probe itself took out: a replica ejected by failing requests returns when its
back-off ends (`router.health`). An engine that says it sleeps or is paused is taken out at once:
it answers /health with 200 and then lets requests hang (vLLM, dev mode tells /is_paused).
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from warmlane.router.config import Probe
from warmlane.router.feeds.client import EngineError, fetch
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica
from warmlane.router.types import ModelList, ReplicaSpec, ReplicaState

log = logging.getLogger("warmlane.feeds")

_REJOIN_PROBES = 2  # good ones in a row: one may be the last answer of a dying process
_JOIN_INTERVAL_S = 0.25  # a new replica is wanted soon
_HURRY_S = 0.1  # between two probes of a replica whose requests fail
_MAX_BYTES = 4_194_304  # /v1/models with thousands of adapters is about 1 MB
_NO_SUCH_PATH = frozenset({401, 403, 404, 405, 501})  # alive, but does not answer this


class Prober:
    """The probe loop of one replica: `run()` until cancelled."""

    def __init__(
        self,
        pool: Pool,
        replica: Replica,
        session: aiohttp.ClientSession,
        config: Probe,
        *,
        headers: dict[str, str],
        metrics: Metrics,
    ) -> None:
        self.pool = pool
        self.replica = replica
        self.session = session
        self.config = config
        self.headers = headers
        self.metrics = metrics
        self.failures = 0
        self.successes = 0
        self.ejected = False  # by this probe, not by failing requests
        self.trouble = ""
        self._models_due = 0.0
        self._pausable = True  # until /is_paused is answered 404
        self._asked = asyncio.Event()  # requests fail there
        self._random = random.Random(f"probe/{pool.name}/{replica.name}")

    async def run(self) -> None:
        while True:
            hurried = self._asked.is_set()
            self._asked.clear()
            well = await self.once()
            if hurried and not well:
                self._asked.set()  # until the probe has an opinion
            delay_s = self.delay_s()
            await asyncio.sleep(min(delay_s, _HURRY_S))
            await self._wait(delay_s - _HURRY_S)

    def hurry(self) -> None:
        """A request failed there: probe now, and again soon while that fails, too."""
        if self.replica.health is ReplicaState.READY:
            self._asked.set()

    async def _wait(self, seconds: float) -> None:
        if self.replica.health is not ReplicaState.READY:
            self._asked.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), max(0.0, seconds))

    async def once(self) -> bool:
        """One probe and what follows from it. True: the replica is well."""
        try:
            await self._check_health()
            await self._check_awake()
            await self._read_models()
        except EngineError as error:
            self._failed(str(error), at_once=isinstance(error, _OutOfService))
            return False
        self._passed()
        return True

    def delay_s(self) -> float:
        """Short while joining, and after a failure, so that three failures take one interval."""
        interval = self.config.interval_s
        if self.replica.state is ReplicaState.JOINING:
            interval = min(interval, _JOIN_INTERVAL_S * (1 + self.failures))
        elif 0 < self.failures < self.config.failures:
            interval /= self.config.failures
        return interval * (0.9 + 0.2 * self._random.random())

    async def _get(self, path: str) -> tuple[int, bytes]:
        return await fetch(
            self.session,
            self.replica.spec.url + path,
            headers=self.headers,
            timeout_s=self.config.timeout_s,
            max_bytes=_MAX_BYTES,
        )

    async def _check_health(self) -> None:
        status, _ = await self._get(self.config.path)
        if 200 <= status < 300 or status in _NO_SUCH_PATH:
            return
        raise EngineError(f"{self.config.path}: status {status}", status)

    async def _check_awake(self) -> None:
        load = self.replica.load
        if load is not None and load.asleep:
            raise _OutOfService("asleep")
        if not self._pausable:
            return
        status, body = await self._get("/is_paused")
        if status != 200:
            self._pausable = False
        elif _json(body).get("is_paused") is True:
            raise _OutOfService("paused")

    async def _read_models(self) -> None:
        now = asyncio.get_running_loop().time()
        if self.replica.models is not None and now < self._models_due:
            return
        status, body = await self._get("/v1/models")
        if status >= 500:
            raise EngineError(f"/v1/models: status {status}", status)
        self._models_due = now + self.config.models_interval_s
        try:
            if status != 200:
                refused = status in (401, 403)
                why = "the engine refuses our API key" if refused else f"status {status}"
                raise EngineError(f"/v1/models: {why}", status)
            models = model_list(body)
        except EngineError as error:
            # It lives, only its list is unknown: requests that fit any model may still go there.
            self._say(str(error))
            models = self.replica.models or labelled_models(self.replica.spec) or ModelList()
        else:
            self._say("")
        self.pool.set_models(self.replica.slot, models)

    def _say(self, trouble: str) -> None:
        """One line per change of what is wrong with the model list."""
        if trouble == self.trouble:
            return
        self.trouble = trouble
        pool, name = self.pool.name, self.replica.name
        if trouble:
            log.warning('event=models_unknown pool=%s replica=%s why="%s"', pool, name, trouble)
        else:
            log.info("event=models_known pool=%s replica=%s", pool, name)

    def _passed(self) -> None:
        self.failures = 0
        self.successes += 1
        replica = self.replica
        if replica.health is ReplicaState.JOINING:
            self.pool.set_state(replica.slot, ReplicaState.READY, "first good probe")
        elif self.ejected and self.successes >= _REJOIN_PROBES:
            self.ejected = False
            self.pool.set_state(replica.slot, ReplicaState.READY, "probe is good again")

    def _failed(self, why: str, *, at_once: bool) -> None:
        self.successes = 0
        self.failures += 1
        replica, pool = self.replica, self.pool
        self.metrics.probe_failed(pool.name, replica.name)
        # Whatever comes back may be another process: read its models and try /is_paused again.
        self._models_due = 0.0
        self._pausable = True
        if replica.health is ReplicaState.JOINING:
            if self.failures == 1:
                log.info('event=joining pool=%s replica=%s why="%s"', pool.name, replica.name, why)
            pool.set_state(replica.slot, ReplicaState.JOINING, why, unwilling=at_once)
            return
        if not at_once and self.failures < self.config.failures:
            return
        if replica.health is not ReplicaState.EJECTED:
            self.ejected = True
            reason = why if at_once else "probe"
            self.metrics.ejection(pool.name, replica.name, reason)
        pool.set_state(replica.slot, ReplicaState.EJECTED, f"probe: {why}", unwilling=at_once)


class _OutOfService(EngineError):
    """The engine itself says that it does not serve now: asleep or paused."""


def labelled_models(spec: ReplicaSpec) -> ModelList | None:
    """What labels `model` and `adapters` (comma-separated) of a discovered replica say."""
    model = spec.labels.get("model", "")
    if not model:
        return None
    names = spec.labels.get("adapters", "").split(",")
    return ModelList(models=frozenset([model]), adapters={name: model for name in names if name})


def model_list(body: bytes) -> ModelList:
    """Models and adapters of a /v1/models answer; EngineError when it is not one.

    An entry with a `parent` is an adapter of that model (vLLM). Entries that are not understood
    are left out.
    """
    data = _json(body).get("data")
    if not isinstance(data, list):
        raise EngineError("/v1/models: no list of models in the answer", 200)
    models: set[str] = set()
    adapters: dict[str, str] = {}
    lengths: list[int] = []
    for entry in data:
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            continue
        parent, length = entry.get("parent"), entry.get("max_model_len")
        if isinstance(parent, str) and parent:
            adapters[name] = parent
        else:
            models.add(name)
            if isinstance(length, int) and length > 0:
                lengths.append(length)
    return ModelList(
        models=frozenset(models),
        adapters=adapters,
        max_model_len=min(lengths) if lengths else None,
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return data if isinstance(data, dict) else {}
