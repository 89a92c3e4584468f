"""The reference transport: grpc.aio with bytes in and bytes out.

Owns the listening socket and nothing of the protocol: handlers (`streams`) get whole messages. One
coroutine a stream. Costs about 400 us of CPU a stream, most of it in grpcio's own event queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio

from warmlane.envoy.streams import OK, Factory, Methods, StreamHandler, TransportLimits
from warmlane.envoy.tls import Tls

log = logging.getLogger("warmlane.envoy")

_LONGER_S: Final = 60.0
_FLUSH_S: Final = 2.0  # for what was answered to leave, behind a client that keeps its connection
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioTransport:
    """See the module. Made by `start_grpcio`."""

    name = "grpcio"

    def __init__(self, methods: Methods) -> None:
        self.port = 0
        self.open = 0
        self.streams = 0
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._methods = methods
        self._server: Any = None
        self._running: set[asyncio.Task[Any]] = set()

    async def start(self, host: str, port: int, tls: Tls | None, limits: TransportLimits) -> None:
        """Bind and serve. OSError: the address is taken."""
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", limits.streams),
            ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            # Gateways ping idle connections too; grpcio would answer with ENHANCE_YOUR_CALM.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
        ]
        self._server = server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_Table(self),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, tls.grpc_credentials())
        except RuntimeError as error:
            raise OSError(f"{error}") from error
        await server.start()

    def stats(self) -> dict[str, float]:
        """Streams now open, and in all."""
        return {"open_streams": self.open, "streams_total": self.streams}

    async def drain(self, timeout_s: float) -> bool:
        """GOAWAY; streams under way finish. True: all did in time."""
        # grpcio does not say whether it had to cut, and tells a handler that is cut of an EOF: so
        # its own grace is longer than ours, and the second call ends what the first let live.
        stopping = asyncio.ensure_future(self._server.stop(timeout_s + _LONGER_S))
        try:
            await asyncio.wait_for(self._emptied.wait(), timeout_s)
        except TimeoutError:
            pass
        whole = self.open == 0
        if whole:  # the last handler has ended, its status is still to be sent
            await asyncio.wait([stopping], timeout=_FLUSH_S)
        await self._server.stop(None)
        await stopping
        return whole

    async def close(self) -> None:
        """Cut what is left."""
        await self._server.stop(None)
        while self._running:
            await asyncio.wait(list(self._running))

    def factory(self, path: str) -> Factory | None:
        return self._methods.get(path)

    async def serve(self, factory: Factory, context: Any) -> None:
        """One stream from its first message to its end."""
        self.open += 1
        self.streams += 1
        self._emptied.clear()
        task = asyncio.current_task()
        assert task is not None, "grpc.aio runs handlers as tasks"
        self._running.add(task)
        call = _Call(context, task)
        handler = call.handler = factory(call.wake)
        try:
            await self._talk(handler, call, context)
        except asyncio.CancelledError:
            if not call.over:
                raise
            task.uncancel()
            await _finish(handler, context)
        finally:
            self.open -= 1
            if not self.open:
                self._emptied.set()
            self._running.discard(task)
            handler.closed()

    async def _talk(self, handler: StreamHandler, call: _Call, context: Any) -> None:
        while True:
            message = await context.read()
            if message is grpc.aio.EOF:
                handler.half_closed()
            else:
                handler.receive(message)
            await call.flush()
            if handler.status is not None:
                await _finish(handler, context)
                return
            if message is grpc.aio.EOF:
                await asyncio.Event().wait()  # until the call is cancelled, by us or the client


class _Call:
    """Writing for one stream: from its own coroutine, and from `wake`."""

    handler: StreamHandler

    def __init__(self, context: Any, task: asyncio.Task[Any]) -> None:
        self.over = False  # the handler set a status outside of `receive`
        self._context = context
        self._task = task
        self._lock = asyncio.Lock()
        self._flushing: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Output became ready."""
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._late())

    async def flush(self) -> None:
        async with self._lock:
            for message in self.handler.take():
                await self._context.write(message)

    async def _late(self) -> None:
        try:
            await self.flush()
        except (grpc.aio.AbortError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            log.debug("event=late_write_lost why=%r", error)
        finally:
            self._flushing = None
        if self.handler.status is not None and not self.over:
            self.over = True
            self._task.cancel()


async def _finish(handler: StreamHandler, context: Any) -> None:
    assert handler.status is not None, "asked by the caller"
    code, text = handler.status
    if code != OK:
        await context.abort(_CODES[code], text)


class _Table(grpc.GenericRpcHandler):
    """Paths to handlers, whatever the shape of the call: bytes in, bytes out."""

    def __init__(self, transport: GrpcioTransport) -> None:
        self._transport = transport

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        factory = self._transport.factory(handler_call_details.method)
        if factory is None:
            return None  # UNIMPLEMENTED
        transport, made = self._transport, factory

        async def run(messages: AsyncIterator[bytes], context: Any) -> None:
            del messages  # read one by one through the context
            await transport.serve(made, context)

        return grpc.stream_stream_rpc_method_handler(run)


async def start_grpcio(
    methods: Methods, *, host: str, port: int, tls: Tls | None, limits: TransportLimits
) -> GrpcioTransport:
    """A listening grpcio transport. OSError: the address is taken."""
    transport = GrpcioTransport(methods)
    await transport.start(host, port, tls, limits)
    return transport
