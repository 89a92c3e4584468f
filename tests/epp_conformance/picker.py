"""A plain endpoint picker that keeps every rule, and can break each of them on purpose.

`Flaws` are names; `Picker(flaws={"no-metadata"})` is a mutant. It shares nothing with warmlane's
own picker, so that the suite is tried on two that know nothing of each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import aiohttp
import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tests.epp_conformance.stream import PickerStream
from warmlane.envoy.proto.messages import (
    HealthCheckRequest,
    HealthCheckResponse,
    ProcessingRequest,
    ProcessingResponse,
)

NAMES = ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")


def _same(data: bytes) -> bytes:
    return data


class EngineView:
    """What the last scrape of one engine said."""

    def __init__(self) -> None:
        self.waiting = self.running = 0.0
        self.kv = 0.0
        self.adapters = ""
        self.up = True

    @property
    def saturated(self) -> bool:
        return self.waiting > 50


class Picker:
    """`await start()`, `port`, `await stop()`. watch: scrape the endpoints and choose by it."""

    def __init__(
        self,
        endpoints: Iterable[str],
        model: str = "m",
        *,
        flaws: Iterable[str] = (),
        alias: tuple[str, ...] | None = None,
        adapter: str = "",
        watch: bool = False,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.model, self.alias, self.adapter = model, alias, adapter
        self.flaws = frozenset(flaws)
        self.views = {endpoint: EngineView() for endpoint in self.endpoints}
        self.watch = watch
        self.turn = 0
        self.homes: dict[str, str] = {}
        self.streams: set[PickerStream] = set()
        self.poisoned = False
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self, tls: tuple[bytes, bytes] | None = None) -> None:
        """Listen on a free port. tls: key and certificate, PEM."""
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        if "ages" in self.flaws:
            options += [("grpc.max_connection_age_ms", 150)]
            options += [("grpc.max_connection_age_grace_ms", 5_000)]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((Handlers(self),))
        if tls is None:
            self.port = server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = grpc.ssl_server_credentials([tls])
            self.port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        self._server = server
        if self.watch:
            self._watcher = asyncio.ensure_future(self._scrape_all())

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(0)

    async def _scrape_all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=0.5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                await asyncio.gather(*(self._scrape(session, item) for item in self.endpoints))
                await asyncio.sleep(0.03)

    async def _scrape(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        view = self.views[endpoint]
        try:
            async with session.get(f"http://{endpoint}/metrics") as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            view.up = False
            return
        view.up = True
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("vllm:num_requests_waiting"):
                view.waiting = float(value)
            elif name.startswith("vllm:num_requests_running"):
                view.running = float(value)
            elif name.startswith("vllm:kv_cache_usage_perc"):
                view.kv = float(value)
            elif name.startswith("vllm:lora_requests_info"):
                view.adapters = name

    # What streams ask

    def ready(self) -> list[str]:
        if "blind" in self.flaws:
            return list(self.endpoints)
        return [endpoint for endpoint in self.endpoints if self.views[endpoint].up]

    def choose(self, allowed: list[str], model: str, prompt: str) -> str:
        """The emptiest; among equals where the same long prompt went before, else in turn."""
        self.turn += 1
        if "first-only" in self.flaws:
            return allowed[0]

        def cost(endpoint: str) -> float:
            if "blind" in self.flaws:
                return 0.0
            view = self.views[endpoint]
            has = self.adapter and model == self.adapter and self.adapter in view.adapters
            return view.waiting + view.running + view.kv - (0.5 if has else 0.0)

        least = min(map(cost, allowed))
        best = [endpoint for endpoint in allowed if cost(endpoint) == least]
        home = self.homes.get(prompt)
        if home not in best or "no-affinity" in self.flaws:
            home = best[self.turn % len(best)]
        if len(prompt) >= 1_000:
            self.homes[prompt] = home
        return home

    def saturated(self) -> bool:
        return all(view.saturated for view in self.views.values())


class Handlers(grpc.GenericRpcHandler):
    """The methods of one picker, found by path."""

    def __init__(self, picker: Picker) -> None:
        self.picker = picker

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        path = details.method
        if path.endswith("/Process") or (
            path.endswith("/NoSuchMethod") and "answers-all" in self.picker.flaws
        ):
            return grpc.stream_stream_rpc_method_handler(self.process, _same, _same)
        if path == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self.check, _same, _same)
        if path == "/grpc.health.v1.Health/Watch":
            return grpc.unary_stream_rpc_method_handler(self.watch, _same, _same)
        return None

    def _status(self, request: bytes) -> int:
        service = HealthCheckRequest.FromString(request).service
        if service not in NAMES:
            return 1 if "health-knows-all" in self.picker.flaws else 3
        return 2 if "not-serving" in self.picker.flaws else 1

    async def check(self, request: bytes, context: Any) -> bytes:
        return bytes(HealthCheckResponse(status=self._status(request)).SerializeToString())

    async def watch(self, request: bytes, context: Any) -> Any:
        if "silent-watch" not in self.picker.flaws:
            yield bytes(HealthCheckResponse(status=self._status(request)).SerializeToString())
        await asyncio.sleep(30)

    async def process(self, messages: Any, context: Any) -> Any:
        picker = self.picker
        stream = PickerStream(picker)
        picker.streams.add(stream)
        try:
            async for reply in self._answers(stream, messages, context):
                yield reply
        finally:
            picker.streams.discard(stream)
            if not stream.finished and "dies-after-reset" in picker.flaws:
                picker.poisoned = True

    async def _answers(self, stream: PickerStream, messages: Any, context: Any) -> Any:
        picker, flaws = self.picker, self.picker.flaws
        if picker.poisoned:
            await context.abort(grpc.StatusCode.INTERNAL, "poisoned")
        if "few-streams" in flaws and len(picker.streams) > 8:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        if "talks-first" in flaws:
            yield bytes(ProcessingResponse(request_headers={}).SerializeToString())
        async for data in _until(messages, stream.cut):
            if data is None:
                yield bytes(stream.evicted().SerializeToString())
                return
            try:
                message = ProcessingRequest.FromString(data)
            except DecodeError:
                if "dies-on-garbage" in flaws:
                    picker.poisoned = True
                if "routes-garbage" in flaws:
                    yield stream.route_reply(picker.endpoints[0])
                    continue
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a ProcessingRequest")
            if "strict-fields" in flaws and data[:2] == b"\xa2\x06":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unknown field")
            if "no-gzip" in flaws and b"Squeeze " * 400 in data:
                await context.abort(grpc.StatusCode.INTERNAL, "compressed")
            for reply in stream.receive(message):
                yield bytes(reply.SerializeToString())
            if stream.hangs_up:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "no endpoints")
        if "decides-on-half" in flaws and not stream.finished:
            for reply in stream.decide_early():
                yield bytes(reply.SerializeToString())
        if "never-ends" in flaws:
            await asyncio.sleep(30)
        if "ends-badly" in flaws:
            await context.abort(grpc.StatusCode.INTERNAL, "half-closed")
        stream.finished = True


async def _until(messages: Any, cut: asyncio.Event) -> Any:
    """The messages of a stream, then None when it is to be cut."""
    source = aiter(messages)
    end = asyncio.ensure_future(cut.wait())
    try:
        while True:
            step = asyncio.ensure_future(anext(source, b""))
            await asyncio.wait((step, end), return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                step.cancel()
                yield None
                return
            data = step.result()
            if data == b"":
                return
            yield data
    finally:
        end.cancel()
