"""Token ids for requests, and the proof of every replica that they are its own. Floor 5.

One `ModelTokens` a pool whose config names a tokenizer. Each READY replica is asked the probes of
`token_jobs`; what it shares with us is written to its pool, where the exact view looks. A replica
that leaves READY, and so may come back as another engine, loses its proof until it is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final

import aiohttp
import msgspec

from warmlane.router.config import Config, PoolConfig
from warmlane.router.core import Router
from warmlane.router.errors import RequestError
from warmlane.router.feeds.client import EngineError, fetch
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica
from warmlane.router.token_jobs import bits_of
from warmlane.router.tokenize import EngineSilent, EngineTokens, LocalTokens, ModelTokens, budget_s
from warmlane.router.tokenizer_local import load
from warmlane.router.types import ReplicaState, Request

_RETRY_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0)  # after an engine that did not answer
_RECHECK_S: Final = 600.0  # a model may be swapped below a name
_TIMEOUT_S: Final = 10.0
_ANSWER_BYTES: Final = 67_108_864


class _Answer(msgspec.Struct):
    """What POST /tokenize answers, as far as it is read."""

    tokens: list[int]


class TokenFeed:
    """The tokenizers of one router's pools.

    headers: of engine calls, by pool; the owner may replace the values. Reads the tokenizers that
    the config names, which takes up to seconds each. ConfigError: one cannot be read.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        config: Config,
        metrics: Metrics,
        session: aiohttp.ClientSession,
        headers: Mapping[str, dict[str, str]],
    ) -> None:
        self.headers = headers
        self.models: dict[str, ModelTokens] = {}
        self.router: Router | None = None  # set by the owner: who decides
        self._pools = pools
        self._config = config
        self._metrics = metrics
        self._session = session
        self._workers = ThreadPoolExecutor(config.tokens.workers, "tokenize")
        self._turned: dict[tuple[str, str], asyncio.Event] = {}
        for name in pools:
            pools[name].on_change(partial(self._changed, name))
        for number, pool in enumerate(config.pools):
            if pool.tokenizer != "off":
                self.models[pool.name] = self._model(pool, f"pools[{number}].tokenizer")

    def _model(self, pool: PoolConfig, where: str) -> ModelTokens:
        cache_bytes = self._config.tokens.cache_bytes
        count = partial(self._metrics.tokens, pool.name)
        if pool.tokenizer == "engine":
            ask = partial(self._ask, pool.name)
            return EngineTokens("", ask, self._workers, cache_bytes, count)
        return LocalTokens("", load(pool.tokenizer, cache_bytes, where), self._workers, count)

    def close(self) -> None:
        """End the worker threads; what they have begun is finished."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def pool_of(self, request: Request) -> str | None:
        """The pool whose decision needs this request's ids; None when no decision would use them.

        That is where some replica's events are trusted. Of a weighted split the first arm counts.
        """
        if request.prompt is None or request.tokens is not None or self.router is None:
            return None
        try:
            target = self.router.catalog.resolve(request, 0)
        except RequestError:  # the decision says so to the client
            return None
        wants = target.pool in self.models and self.router.lanes[target.pool].wants_tokens
        return target.pool if wants else None

    async def ids(self, request: Request, pool: str, body: bytes) -> Request:
        """The request with the token ids of its prompt, or as it was when they cannot be had."""
        model = self.models.get(pool)
        if model is None or request.tokens is not None or request.prompt is None:
            return request
        per_s = self._config.tokens.prefill_tokens_per_s * self._config.index.bytes_per_token
        found = await model.ids(request.kind, body, budget_s(len(body), per_s))
        if found is None:
            return request
        bits = bits_of(found.features)
        return msgspec.structs.replace(request, tokens=found.tokens, token_features=bits)

    async def prove(self, pool: Pool, replica: Replica) -> None:
        """Keep one replica's proof, until cancelled. For a pool of `models` only."""
        model = self.models[pool.name]
        ask = partial(self._ask, pool.name)
        turned = self._turned[pool.name, replica.name] = asyncio.Event()
        failures = 0
        try:
            while True:
                turned.clear()
                if replica.models is None or not _serves(replica):
                    self._forget(model, pool, replica)
                    await turned.wait()
                    continue
                model.model = min(replica.models.models)
                proof = await model.prove(replica.name, ask)
                pool.set_token_features(replica.slot, bits_of(proof.features))
                silent = proof.state == "silent"
                wait_s = _RETRY_S[min(failures, len(_RETRY_S) - 1)] if silent else _RECHECK_S
                failures = failures + 1 if silent else 0
                await _either(turned, wait_s)
        finally:
            self._turned.pop((pool.name, replica.name), None)
            self._forget(model, pool, replica)

    def _changed(self, pool: str, event: str, replica: Replica) -> None:
        turned = self._turned.get((pool, replica.name))
        if turned is not None and event in ("state", "models"):
            turned.set()

    def _forget(self, model: ModelTokens, pool: Pool, replica: Replica) -> None:
        model.forget(replica.name)
        pool.set_token_features(replica.slot, 0)

    async def _ask(self, pool: str, name: str, body: dict[str, Any]) -> list[int]:
        replica = self._pools[pool].by_name(name)
        if replica is None:
            raise EngineSilent("it left the pool")
        try:
            status, answer = await fetch(
                self._session,
                replica.spec.url + "/tokenize",
                headers=self.headers.get(pool, {}),
                timeout_s=_TIMEOUT_S,
                max_bytes=_ANSWER_BYTES,
                data=msgspec.json.encode(body),
            )
        except EngineError as error:
            raise EngineSilent(str(error)) from error
        if status != 200:
            raise EngineSilent(f"answered {status}")
        try:
            return msgspec.json.decode(answer, type=_Answer).tokens
        except msgspec.DecodeError as error:
            raise EngineSilent("an answer without tokens") from error


async def _either(turned: asyncio.Event, seconds: float) -> None:
    """Return when the replica changed or the time is over."""
    with suppress(TimeoutError):
        await asyncio.wait_for(turned.wait(), seconds)


def _serves(replica: Replica) -> bool:
    """Is it worth asking: up, and its model's name known?"""
    known = replica.models is not None and bool(replica.models.models)
    return known and replica.state in (ReplicaState.READY, ReplicaState.DRAINING)
