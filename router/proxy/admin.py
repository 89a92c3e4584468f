"""The control plane: metrics, health, replicas, explain. aiohttp on a port of its own.

    GET  /metrics                           Prometheus text
    GET  /healthz                           200 while the process lives
    GET  /readyz                            200 while new requests can be served, else 503
    GET  /admin/v1/replicas                 state, load and its age, work in flight, models
    POST /admin/v1/replicas                 add: {"url": ..., "pool": "default", "zone": ...}
    DELETE /admin/v1/replicas/{name}        drain, then remove; ?now=1 removes at once
    POST /admin/v1/replicas/{name}/drain    no new requests
    POST /admin/v1/replicas/{name}/undrain
    POST /admin/v1/explain                  a client's request body; ?path=/v1/chat/completions
    GET  /admin/v1/config                   the tree with all defaults
    POST /admin/v1/reload                   read the config file again
    GET  /admin/v1/adapters                 LoRA adapters by replica: state, requests, last use
    GET  /admin/v1/admission                by pool: who waits, sessions and their memory
    GET  /admin/v1/shadow                   choices compared with the other side's, by model
    POST /admin/v1/shadow                   switch: {"mode": "active" | "shadow" | "least-requests",
                                            "share": 0..1}, either or both

Everything below /admin asks for the bearer token when one is configured. Without a token the port
is bound to loopback only, and requests that a web page could have caused are refused: a foreign
Host (DNS rebinding) or any Origin. Names with "#" or "/" are percent-encoded in the path.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final, NoReturn, Protocol

import msgspec
from aiohttp import web

from warmlane.router.admission import described
from warmlane.router.admission_read import marked
from warmlane.router.build import Running
from warmlane.router.config import Config
from warmlane.router.config_load import replica_specs
from warmlane.router.errors import ConfigError, NoReplica, RequestError
from warmlane.router.feeds.client import read_keys
from warmlane.router.feeds.membership import spec_dict
from warmlane.router.metrics_export import CONTENT_TYPE
from warmlane.router.pool import Pool, Replica
from warmlane.router.proxy.admin_adapters import adapters_of
from warmlane.router.proxy.admin_log import PeerLog
from warmlane.router.proxy.sockets import listen
from warmlane.router.requests import parse
from warmlane.router.shadow import Shadow
from warmlane.router.types import JsonObject

log = logging.getLogger("warmlane.admin")

_YIELD_BYTES: Final = 32_768  # of metrics text between two turns of the event loop
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Reload(Protocol):
    """Reads the config again; returns paths that need a restart. Raises ConfigError."""

    def __call__(self) -> list[str]: ...


class Admin:
    """The admin server of one running router. `port` is the bound one."""

    def __init__(self, running: Running, config: Config, reload: Reload) -> None:
        self.running = running
        self.host = config.admin.host
        self.port = config.admin.port
        self._reload = reload
        self._token = b""
        self._metrics_only = config.admin.metrics_only
        if config.admin.token_file:
            self._token = read_keys(config.admin.token_file, "admin.token_file")[0].encode()
        elif not is_loopback(self.host) and not config.admin.metrics_only:
            raise ConfigError(
                f"admin.host: {self.host!r}: an address that is not loopback needs admin.token_file"
            )
        self._runner: web.AppRunner | None = None
        self._max_body = config.limits.body_bytes

    async def start(self) -> None:
        """Bind and serve. OSError: the address is taken."""
        app = web.Application(middlewares=[self._guard], client_max_size=self._max_body)
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/admin/v1/replicas", self._replicas),
                web.post("/admin/v1/replicas", self._add),
                web.delete("/admin/v1/replicas/{name}", self._remove),
                web.post("/admin/v1/replicas/{name}/drain", self._drain),
                web.post("/admin/v1/replicas/{name}/undrain", self._undrain),
                web.post("/admin/v1/explain", self._explain),
                web.get("/admin/v1/config", self._config),
                web.post("/admin/v1/reload", self._do_reload),
                web.get("/admin/v1/adapters", self._adapters),
                web.get("/admin/v1/admission", self._admission),
                web.get("/admin/v1/shadow", self._shadow),
                web.post("/admin/v1/shadow", self._switch),
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
            logger=PeerLog(log),
        )
        await self._runner.setup()
        for sock in await listen(self.host, self.port):
            await web.SockSite(self._runner, sock).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop serving; may be called twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check_access(request)
            return await handler(request)
        except RequestError as error:
            return _error(error.status, error.message, error.kind, error.code)
        except NoReplica as error:
            return _error(error.status, error.message, "no_replica")
        except ConfigError as error:
            return _error(400, str(error), "invalid_request_error")
        except web.HTTPException as error:
            return _error(error.status, error.reason, "invalid_request_error")
        except Exception:
            log.exception("event=admin_bug path=%s", request.path)
            return _error(500, "internal error; the log has the trace", "internal_error")

    def _check_access(self, request: web.Request) -> None:
        guarded = request.path.startswith("/admin")
        if self._metrics_only:
            if guarded:
                _refuse(403, "this port answers metrics and health only", "permission_error")
        elif self._token:
            if not guarded:
                return
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            told = given.strip().encode("utf-8", "surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(told, self._token):
                _refuse(401, "the admin token is missing or wrong", "authentication_error")
        elif "Origin" in request.headers or not _is_local_host(request.headers.get("Host", "")):
            _refuse(403, "without a token only local programs may ask", "permission_error")

    # Health and metrics -------------------------------------------------------------------------

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        parts: list[bytes] = []
        size = 0
        for part in self.running.metrics.parts():
            parts.append(part)
            size += len(part)
            if size >= _YIELD_BYTES:
                size = 0
                await asyncio.sleep(0)
        return web.Response(body=b"".join(parts), headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        del request
        why = self.running.why_not_ready()
        return web.json_response({"ready": not why, "why": why}, status=503 if why else 200)

    # Replicas -----------------------------------------------------------------------------------

    async def _replicas(self, request: web.Request) -> web.Response:
        wanted = request.query.get("pool")
        if wanted is not None and wanted not in self.running.router.pools:
            _refuse(404, f"no pool {wanted!r}", "not_found")
        now = monotonic()
        rows = [
            describe(pool, replica, now)
            for name, pool in self.running.router.pools.items()
            if wanted in (None, name)
            for replica in pool
        ]
        return _json({"replicas": rows})

    async def _add(self, request: web.Request) -> web.Response:
        data = await _body(request)
        pools = self.running.router.pools
        name = data.pop("pool", next(iter(pools)))
        if not isinstance(name, str) or name not in pools:
            _refuse(404, f"no pool {name!r}", "not_found")
        (spec,) = replica_specs([data], where="replica")
        taken = [pool.name for pool in pools.values() if pool.by_name(spec.name) is not None]
        if any(other != name for other in taken):
            _refuse(409, f"replica {spec.name!r} is in pool {taken[0]!r}", "conflict")
        replica = self.running.feeds.membership[name].add(spec, monotonic())
        log.info("event=admin_added pool=%s replica=%s", name, replica.name)
        return _json(describe(pools[name], replica, monotonic()), 200 if taken else 201)

    async def _remove(self, request: web.Request) -> web.Response:
        pool, replica = self._find(request)
        at_once = request.query.get("now", "") not in ("", "0", "false")
        membership = self.running.feeds.membership[pool.name]
        membership.remove(replica.name, monotonic(), at_once=at_once)
        log.info("event=admin_removed pool=%s replica=%s now=%s", pool.name, replica.name, at_once)
        return _json({"replica": replica.name, "removed": "now" if at_once else "after its drain"})

    async def _drain(self, request: web.Request) -> web.Response:
        pool, replica = self._find(request)
        pool.drain(replica.name)
        return _json(describe(pool, replica, monotonic()))

    async def _undrain(self, request: web.Request) -> web.Response:
        pool, replica = self._find(request)
        if replica.name in self.running.feeds.membership[pool.name].leaving:
            _refuse(409, "it is being removed; add it again to keep it", "conflict")
        pool.undrain(replica.name)
        return _json(describe(pool, replica, monotonic()))

    def _find(self, request: web.Request) -> tuple[Pool, Replica]:
        name, wanted = request.match_info["name"], request.query.get("pool")
        found = [
            (pool, replica)
            for pool in self.running.router.pools.values()
            if wanted in (None, pool.name) and (replica := pool.by_name(name)) is not None
        ]
        if not found:
            _refuse(404, f"no replica {name!r}", "not_found")
        if len(found) > 1:
            _refuse(409, f"{name!r} is in several pools: say ?pool=NAME", "conflict")
        return found[0]

    # Questions ----------------------------------------------------------------------------------

    async def _explain(self, request: web.Request) -> web.Response:
        body = await request.read()
        path = request.query.get("path") or guess_path(body)
        # Of the caller's own headers only those count that would steer a client's request too, and
        # not the one with the admin token.
        admission = self.running.config.admission
        names = ["x-session-id", "x-warmlane-subset", "x-api-key", "api-key"]
        headers = {
            name.lower().encode(): value.encode("utf-8", "surrogateescape")
            for name in names + admission.tenant_headers + admission.deadline_headers
            if (value := request.headers.get(name)) is not None
        }
        headers.pop(b"authorization", None)
        parsed, _ = parse("POST", path, headers, body, transfer_params="strip", trust_subset=True)
        if admission.enabled:
            parsed = marked(parsed, headers, body, admission)
        explanation = self.running.router.explain(parsed, monotonic())
        return web.Response(body=msgspec.json.encode(explanation), content_type="application/json")

    async def _config(self, request: web.Request) -> web.Response:
        del request
        return _json(msgspec.to_builtins(self.running.config))

    async def _do_reload(self, request: web.Request) -> web.Response:
        del request
        return _json({"reloaded": True, "restart_needed": self._reload()})

    async def _adapters(self, request: web.Request) -> web.Response:
        del request
        pools = self.running.router.pools
        now = monotonic()
        return _json({"pools": {name: adapters_of(pool, now) for name, pool in pools.items()}})

    async def _admission(self, request: web.Request) -> web.Response:
        del request
        gates = [lane.gate for lane in self.running.router.lanes.values()]
        now = monotonic()
        rows = [described(gate, now) for gate in gates if gate is not None]
        return _json({"enabled": self.running.config.admission.enabled, "pools": rows})

    async def _shadow(self, request: web.Request) -> web.Response:
        del request
        shadow = self._compared()
        return _json({"mode": shadow.mode, "share": shadow.share, "models": shadow.report()})

    async def _switch(self, request: web.Request) -> web.Response:
        shadow, wanted = self._compared(), await _body(request)
        if not wanted or wanted.keys() - {"mode", "share"}:
            raise RequestError(400, "mode, share or both")
        try:
            shadow.switch(wanted.get("mode"), wanted.get("share"))
        except (TypeError, ValueError) as error:
            raise RequestError(400, str(error)) from error
        log.info("event=switched mode=%s share=%g", shadow.mode, shadow.share)
        return _json({"mode": shadow.mode, "share": shadow.share})

    def _compared(self) -> Shadow:
        shadow = self.running.shadow
        if shadow is None:
            _refuse(404, "this process compares no decisions", "not_found")
        return shadow


def describe(pool: Pool, replica: Replica, now: float) -> JsonObject:
    """One replica as the admin interface shows it."""
    ledger, slot, load, models = pool.ledger, replica.slot, replica.load, replica.models
    return {
        "name": replica.name,
        "pool": pool.name,
        **spec_dict(replica.spec),
        "slot": slot,
        "state": replica.state.name.lower(),
        "reason": replica.reason,
        "requests": ledger.requests[slot],
        "running": ledger.running[slot],
        "prefill_tokens": ledger.prefill_tokens[slot],
        "decode_tokens": ledger.decode_tokens[slot],
        "foreign_requests": pool.foreign.requests[slot],
        "foreign_prefill_tokens": pool.foreign.tokens[slot],
        "load": None if load is None else _load_dict(msgspec.to_builtins(load)),
        "load_age_s": pool.load_age_s(slot, now),
        "doubt": None if replica.doubt is None else msgspec.to_builtins(replica.doubt),
        "models": [] if models is None else sorted(models.models),
        "adapters": {} if models is None else models.adapters,
    }


def _load_dict(load: JsonObject) -> JsonObject:
    del load["taken_at"]  # a number of this process's clock; `load_age_s` says what it means
    return load


def guess_path(body: bytes) -> str:
    """The endpoint that a body was most likely written for."""
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    if isinstance(data, dict):
        for field, path in (
            ("messages", "/v1/chat/completions"),
            ("prompt", "/v1/completions"),
            ("input", "/v1/responses"),
        ):
            if field in data:
                return path
    raise RequestError(400, "no messages, prompt or input in the body: say ?path=/v1/...")


def is_loopback(host: str) -> bool:
    """Whether binding `host` keeps the port on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_local_host(header: str) -> bool:
    host = header.rpartition(":")[0] if not header.endswith("]") and ":" in header else header
    return is_loopback(host.lower())


async def _body(request: web.Request) -> JsonObject:
    try:
        data = msgspec.json.decode(await request.read())
    except msgspec.DecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise RequestError(400, "the body must be a JSON object")
    return data


def _json(data: Any, status: int = 200) -> web.Response:
    text = json.dumps(data, indent=2, default=sorted)  # sets of names: sorted lists
    return web.Response(text=text + "\n", status=status, content_type="application/json")


def _error(status: int, message: str, kind: str, code: str | None = None) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    error = {"message": message, "type": kind, "param": None, "code": code or status}
    return web.json_response({"error": error}, status=status, headers=headers)


def _refuse(status: int, message: str, kind: str) -> NoReturn:
    raise RequestError(status, message, kind=kind)


async def start_admin(running: Running, config: Config, reload: Reload) -> Admin:
    """Serve the control plane on `config.admin`. ConfigError: unsafe address or bad token file."""
    admin = Admin(running, config, reload)
    await admin.start()
    return admin
