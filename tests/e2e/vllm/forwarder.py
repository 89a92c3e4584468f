"""A wire between router and engine that can be cut: bytes pass both ways, as they come.

Cut, it closes what is open and refuses, as a network that is gone; restored, it listens at the same
port again. What the engine publishes meanwhile is lost, and only its replay socket still has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any

_CHUNK = 65_536


class Forwarder:
    """Listens on a port of its own in front of `target`, a port of this machine."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.restore()

    def restore(self) -> None:
        """Accept connections (again)."""
        self._run(self._listen())

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        self._run(self._close())

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=listener)

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        while self._pipes:
            for pipe in list(self._pipes):
                pipe.cancel()
            await asyncio.wait(self._pipes, timeout=1)

    async def _accept(self, near: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        task.add_done_callback(self._pipes.discard)
        self.accepted += 1
        with contextlib.closing(out), contextlib.suppress(OSError, asyncio.CancelledError):
            far, back = await asyncio.open_connection("127.0.0.1", self.target)
            with contextlib.closing(back):
                both = [asyncio.ensure_future(_pump(near, back))]
                both += [asyncio.ensure_future(_pump(far, out))]
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in both:
                        each.cancel()
                    await asyncio.gather(*both, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
