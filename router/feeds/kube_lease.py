"""One active picker of several: a coordination.k8s.io/v1 Lease that the leader renews.

Safe before quick: a leader counts as one for `renew_s` from the start of its last good renewal, and
`leading` looks at the clock each time it is asked, so that a stalled process leads no longer than
that. Others take the lease when they have seen no change of it for its whole duration by their own
clock; the times written in it are never compared. Two at once would need clocks that run at
different rates by `renew_s / lease_s`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from warmlane.router.config import Leader
from warmlane.router.feeds.kube_access import Access
from warmlane.router.feeds.kube_api import ApiError, KubeApi
from warmlane.router.metrics import Metrics

log = logging.getLogger("warmlane.feeds")

_RELEASE_S: Final = 2.0
_CONFLICT: Final = 409


class Lease:
    """`run()` until cancelled; `release()` after that, so that the next one need not wait."""

    def __init__(
        self,
        config: Leader,
        access: Access,
        metrics: Metrics,
        clock: Callable[[], float],
        chance: random.Random | None = None,
    ) -> None:
        self.identity = config.identity or f"{socket.gethostname()}_{os.getpid()}"
        self._config = config
        self._access = access
        self._metrics = metrics
        self._clock = clock
        self._chance = chance or random.Random()
        namespace = quote(config.namespace or access.namespace, safe="")
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._until = float("-inf")  # we lead before that time
        self._seen: tuple[str, str] | None = None  # holder and version, as last read
        self._seen_at = 0.0
        self._said = False
        self._trouble = ""
        metrics.gauge("warmlane_leader", 0)

    @property
    def leading(self) -> bool:
        """May this picker decide now?"""
        return self._clock() < self._until

    async def run(self) -> None:
        async with KubeApi(self._access) as api:
            while True:
                await self.step(api)
                jitter = 0.8 + 0.4 * self._chance.random()
                await asyncio.sleep(self._config.retry_s * jitter)

    async def release(self) -> None:
        """Give the lease up if we hold it. Never raises for an API that is away."""
        if not self.leading:
            return
        self._until = float("-inf")
        self._tell()
        try:
            async with asyncio.timeout(_RELEASE_S), KubeApi(self._access) as api:
                lease = await self._read(api)
                if lease is not None and _spec(lease).get("holderIdentity") == self.identity:
                    lease["spec"] = {**_spec(lease), "holderIdentity": "", "renewTime": _now()}
                    await self._replace(api, lease)
        except (ApiError, TimeoutError) as error:
            log.warning('event=leader_release_failed why="%s"', error or "no answer in time")

    async def step(self, api: KubeApi) -> None:
        """One try to take or to renew it. Afterwards `leading` is right."""
        began = self._clock()
        # Longer than until the end of our own term no answer is worth waiting for.
        limit_s = self._until - began if self._until > began else self._config.renew_s
        try:
            async with asyncio.timeout(limit_s):
                if await self._try(api, began):
                    self._until = began + self._config.renew_s
            self._say("")
        except TimeoutError:
            self._say("no answer in time")
        except ApiError as error:
            if error.status != _CONFLICT:  # another one was quicker
                self._say(str(error))
        self._tell()

    async def _try(self, api: KubeApi, now: float) -> bool:
        """True: the lease is ours from `now` on."""
        lease = await self._read(api)
        if lease is None:
            meta = {"name": self._config.lease}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta}
            lease["spec"] = self._ours({})
            await api.call("POST", self._path, body=msgspec.json.encode(lease))
            return True
        spec = _spec(lease)
        holder = str(spec.get("holderIdentity") or "")
        seen = (holder, str(lease.get("metadata", {}).get("resourceVersion")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        if holder not in ("", self.identity) and now < self._seen_at + self._duration_s(spec):
            self._until = float("-inf")  # whoever holds it, it is not us
            return False
        # Also when the name is ours already: a predecessor of this process may have had it.
        lease["spec"] = self._ours(spec)
        await self._replace(api, lease)
        return True

    def _ours(self, spec: dict[str, Any]) -> dict[str, Any]:
        now = _now()
        mine = spec.get("holderIdentity") == self.identity
        return {
            **spec,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._config.lease_s)),
            "acquireTime": spec.get("acquireTime") or now if mine else now,
            "renewTime": now,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (not mine),
        }

    def _duration_s(self, spec: dict[str, Any]) -> float:
        """What the holder promised, and never less than what we would."""
        told = spec.get("leaseDurationSeconds")
        return max(self._config.lease_s, float(told) if isinstance(told, int) else 0.0)

    async def _read(self, api: KubeApi) -> dict[str, Any] | None:
        try:
            body = await api.get(f"{self._path}/{quote(self._config.lease, safe='')}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return _object(body)

    async def _replace(self, api: KubeApi, lease: dict[str, Any]) -> None:
        # With the version that was read: the API server refuses it if another one was quicker.
        path = f"{self._path}/{quote(self._config.lease, safe='')}"
        await api.call("PUT", path, body=msgspec.json.encode(lease))

    def _tell(self) -> None:
        leads = self.leading
        if leads == self._said:
            return
        self._said = leads
        self._metrics.gauge("warmlane_leader", leads)
        self._metrics.count("warmlane_leader_changes_total")
        name = self._config.lease
        log.info("event=leader lease=%s identity=%s leads=%s", name, self.identity, leads)

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning('event=lease_failing lease=%s why="%s"', self._config.lease, trouble)
        elif self._trouble and not trouble:
            log.info("event=lease_recovered lease=%s", self._config.lease)
        self._trouble = trouble


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError("the lease cannot be read") from error
    if not isinstance(value, dict) or not isinstance(value.get("metadata"), dict):
        raise ApiError("the lease cannot be read")
    return value


def _spec(lease: dict[str, Any]) -> dict[str, Any]:
    spec = lease.get("spec")
    return spec if isinstance(spec, dict) else {}


def _now() -> str:
    """metav1.MicroTime; for people, nobody compares it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
