"""An API server over aiohttp: lists in pages, watches in chunks, leases, and faults on demand.

What it gets wrong is as in a real one: connections break in the middle of a line, history expires
(410 on the request and inside the stream), tokens are refused, requests are throttled, and answers
come byte by byte. `requests` records what clients asked.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from aiohttp import web

from tests.kube_api.store import Gone, Json, Store, selector

RESOURCES = (
    "api/v1/pods",
    "api/v1/nodes",
    "apis/discovery.k8s.io/v1/endpointslices",
    "apis/coordination.k8s.io/v1/leases",
)
CUSTOM = (
    "apis/inference.networking.k8s.io/v1/inferencepools",
    "apis/llm-d.ai/v1alpha2/inferenceobjectives",
    "apis/llm-d.ai/v1alpha2/inferencemodelrewrites",
)
PODS, NODES, SLICES, LEASES = RESOURCES
POOLS, OBJECTIVES, REWRITES = CUSTOM
_KINDS = {
    "pods": "Pod",
    "nodes": "Node",
    "endpointslices": "EndpointSlice",
    "leases": "Lease",
    "inferencepools": "InferencePool",
    "inferenceobjectives": "InferenceObjective",
    "inferencemodelrewrites": "InferenceModelRewrite",
}


class Asked(NamedTuple):
    """One request: what kind (list, watch, get, create, replace), where, with which query."""

    what: str
    resource: str
    namespace: str
    query: dict[str, str]
    token: str


class Refusal(NamedTuple):
    """What to answer instead: status, reason, headers."""

    status: int
    reason: str
    headers: dict[str, str]


class KubeServer:
    """`async with KubeServer() as server`: `server.store` is the truth, the rest are faults."""

    def __init__(self, *, custom: bool = True, tls: ssl.SSLContext | None = None) -> None:
        self.store = Store()
        self.store.install(*RESOURCES, *(CUSTOM if custom else ()))
        self.tokens: set[str] | None = None  # accepted ones; None: all
        self.requests: list[Asked] = []
        self.refusals: list[Refusal] = []  # answered to the next requests, one each
        self.refuse: Callable[[Asked], Refusal | None] | None = None
        self.page_max = 1000
        self.gone_on_request = True  # 410 as status; False: as an ERROR event
        self.byte_by_byte = False
        self.half_line = False  # a dropped watch leaves half an event behind
        self.wrong_chunks = False  # and that half has a wrong size in front of it
        self.frozen = False  # watches stay silent
        self.watch_s = 1e9  # longest watch
        self._tls = tls
        self._watchers: set[_Watcher] = set()
        self._snapshots: dict[str, tuple[int, list[Json]]] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> KubeServer:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handle_signals=False, shutdown_timeout=0.2, handler_cancellation=True
        )
        await self._runner.setup()
        await self.listen()
        self.store.wake.append(self.wake)
        return self

    async def listen(self, port: int = 0) -> None:
        assert self._runner is not None
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._tls)
        await site.start()
        host = "localhost" if self._tls else "127.0.0.1"
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://{host}:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        self.drop_watches()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def watching(self) -> list[str]:
        """Resources that are watched now."""
        return sorted(each.resource.rpartition("/")[2] for each in self._watchers)

    def wake(self) -> None:
        for watcher in self._watchers:
            watcher.news.set()

    def drop_watches(self) -> None:
        """Cut every watch without a word."""
        for watcher in list(self._watchers):
            watcher.cut()

    def end_watches(self) -> None:
        """End every watch in good order, as at its timeoutSeconds."""
        for watcher in self._watchers:
            watcher.over = True
            watcher.news.set()

    def bookmark(self) -> None:
        """Tell every watcher the present version."""
        for watcher in self._watchers:
            watcher.bookmark = True
            watcher.news.set()

    def inject(self, line: bytes) -> None:
        """Send every watcher these bytes between two events."""
        for watcher in self._watchers:
            watcher.extra.append(line)
            watcher.news.set()

    def throttle(self, count: int, retry_after_s: int) -> None:
        headers = {"Retry-After": str(retry_after_s)}
        self.refusals += [Refusal(429, "TooManyRequests", headers)] * count

    def fail(self, status: int, reason: str, count: int = 1) -> None:
        self.refusals += [Refusal(status, reason, {})] * count

    def _discovery(self, parts: list[str]) -> web.Response | None:
        """What kubectl asks first: which groups, versions and resources there are."""
        if parts == ["api"]:
            return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
        known = [resource.split("/") for resource in self.store.collections]
        if parts == ["apis"]:
            groups = sorted({(each[1], each[2]) for each in known if each[0] == "apis"})
            found = [(group, {"groupVersion": f"{group}/{v}", "version": v}) for group, v in groups]
            listed = [
                {"name": group, "versions": [version], "preferredVersion": version}
                for group, version in found
            ]
            return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": listed})
        names = [each[-1] for each in known if each[:-1] == parts]
        if not names:
            return None
        resources = [
            {
                "name": name,
                "singularName": _KINDS[name].lower(),
                "namespaced": name != "nodes",
                "kind": _KINDS[name],
                "verbs": ["get", "list", "watch"],
            }
            for name in names
        ]
        return web.json_response(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": "/".join(parts[1:]),
                "resources": resources,
            }
        )

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        described = self._discovery(parts)
        if described is not None:
            return described
        namespace, name = "", ""
        if "namespaces" in parts:
            at = parts.index("namespaces")
            namespace = parts[at + 1]
            parts = parts[:at] + parts[at + 2 :]
        depth = 3 if parts[0] == "api" else 4
        if len(parts) > depth:
            name = parts[depth]
        resource = "/".join(parts[:depth])
        query = dict(request.query)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        what = "watch" if query.get("watch") in ("true", "1") else "get" if name else "list"
        what = {"POST": "create", "PUT": "replace"}.get(request.method, what)
        asked = Asked(what, resource, namespace, query, token)
        self.requests.append(asked)
        if self.tokens is not None and token not in self.tokens:
            return _status(401, "Unauthorized")
        refusal = self.refuse(asked) if self.refuse is not None else None
        if refusal is None and self.refusals:
            refusal = self.refusals.pop(0)
        if refusal is not None:
            return _status(refusal.status, refusal.reason, refusal.headers)
        if resource not in self.store.collections:
            return _status(404, "NotFound")
        if what in ("create", "replace"):
            return self._write(asked, name, await request.json())
        if what == "get":
            value = self.store.collections[resource].objects.get((namespace, name))
            return _status(404, "NotFound") if value is None else web.json_response(value)
        if what == "watch":
            return await self._watch(request, asked)
        return self._list(asked)

    def _list(self, asked: Asked) -> web.Response:
        query, resource = asked.query, asked.resource
        select = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        token = query.get("continue", "")
        if token:
            if token not in self._snapshots:
                return _status(410, "Expired")
            version, items = self._snapshots.pop(token)
        else:
            version = self.store.version
            items = self.store.listed(resource, asked.namespace, select)
        limit = min(self.page_max, int(query.get("limit") or 0) or len(items) or 1)
        meta: Json = {"resourceVersion": str(version)}
        if "limit" in query and len(items) > limit:
            again = f"c{version}-{len(self.requests)}"
            self._snapshots[again] = (version, items[limit:])
            meta |= {"continue": again, "remainingItemCount": len(items) - limit}
            items = items[:limit]
        plural = resource.rpartition("/")[2]
        kind = f"{_KINDS[plural]}List"
        return web.json_response(
            {"kind": kind, "apiVersion": _api_version(resource), "metadata": meta, "items": items}
        )

    def expire_pages(self) -> None:
        """Forget the snapshots behind every `continue`."""
        self._snapshots.clear()

    async def _watch(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        since = int(asked.query.get("resourceVersion") or self.store.version)
        collection = self.store.collections[asked.resource]
        if since < collection.floor and self.gone_on_request:
            return _status(410, "Expired")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        watcher = _Watcher(self, request, response, asked, since)
        self._watchers.add(watcher)
        try:
            await watcher.run()
        except ConnectionResetError:
            return response  # the client, or a fault, has cut it
        finally:
            self._watchers.discard(watcher)
        return response

    def _write(self, asked: Asked, name: str, value: Json) -> web.Response:
        """Create, or replace under optimistic concurrency."""
        objects = self.store.collections[asked.resource].objects
        name = name or value["metadata"]["name"]
        value["metadata"]["namespace"] = asked.namespace
        have = objects.get((asked.namespace, name))
        if asked.what == "create" and have is not None:
            return _status(409, "AlreadyExists")
        if asked.what == "replace":
            if have is None:
                return _status(404, "NotFound")
            told = value["metadata"].get("resourceVersion")
            if told is not None and told != have["metadata"]["resourceVersion"]:
                return _status(409, "Conflict")
        return web.json_response(self.store.put(asked.resource, value))


class _Watcher:
    """One watch connection."""

    def __init__(
        self,
        server: KubeServer,
        request: web.Request,
        response: web.StreamResponse,
        asked: Asked,
        since: int,
    ) -> None:
        self.server = server
        self.resource = asked.resource
        self.news = asyncio.Event()
        self.over = self.bookmark = False
        self.extra: list[bytes] = []
        self._request = request
        self._response = response
        self._namespace = asked.namespace
        self._since = since
        query = asked.query
        self._bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        self._select = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        self._until = asyncio.get_running_loop().time() + min(
            server.watch_s, float(query.get("timeoutSeconds") or 1e9)
        )

    def cut(self) -> None:
        transport = self._request.transport
        if transport is not None:
            if self.server.half_line:
                half = b'{"type":"MODIFIED","object":{"metadata":{"name":"'
                size = len(half) - 2 if self.server.wrong_chunks else len(half)
                transport.write(b"%x\r\n%s\r\n" % (size, half))
            transport.abort()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.over and loop.time() < self._until:
            self.news.clear()
            if not self.server.frozen and not await self._tell():
                return
            try:
                async with asyncio.timeout(min(60.0, self._until - loop.time())):
                    await self.news.wait()
            except TimeoutError:
                continue

    async def _tell(self) -> bool:
        """All that is new. False: the stream is over."""
        store = self.server.store
        try:
            events = list(store.events(self.resource, self._since, self._namespace, self._select))
        except Gone:
            status = _status_object(410, "Expired")
            await self._send({"type": "ERROR", "object": status})
            return False
        self._since = store.version  # what did not match is seen too
        for _, kind, value in events:
            await self._send({"type": kind, "object": value})
        while self.extra:
            await self._response.write(self.extra.pop(0))
        if self.bookmark and self._bookmarks:
            # Of what this stream has told: a write during the lines above is still to come.
            meta = {"resourceVersion": str(self._since), "creationTimestamp": None}
            plural = self.resource.rpartition("/")[2]
            bare = {
                "kind": _KINDS[plural],
                "apiVersion": _api_version(self.resource),
                "metadata": meta,
            }
            await self._send({"type": "BOOKMARK", "object": bare})
        self.bookmark = False
        return True

    async def _send(self, event: Json) -> None:
        line = json.dumps(event).encode() + b"\n"
        if not self.server.byte_by_byte:
            await self._response.write(line)
            return
        for at in range(0, len(line), 7):
            await self._response.write(line[at : at + 7])
            await asyncio.sleep(0)


def _api_version(resource: str) -> str:
    return "/".join(resource.split("/")[1:-1])


def _status_object(code: int, reason: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"{reason} (told by a test)",
        "reason": reason,
        "code": code,
    }


def _status(code: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(_status_object(code, reason), status=code, headers=headers)


def kubeconfig(server: KubeServer, token: str = "t", **user: Any) -> str:
    """YAML (JSON) text of a kubeconfig for this server."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [
                {"name": "test", "context": {"cluster": "c", "user": "u", "namespace": "default"}}
            ],
            "clusters": [{"name": "c", "cluster": {"server": server.url}}],
            "users": [{"name": "u", "user": user or {"token": token}}],
        }
    )
