"""A small engine over real HTTP on loopback: what the feeds see of one, changeable at will."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

from aiohttp import web

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"


def recorded(name: str) -> bytes:
    return gzip.decompress((GOLDEN / f"{name}.txt.gz").read_bytes())


def vllm_text(
    *, running: float = 0, waiting: float = 0, queries: float = 0, hits: float = 0, epoch: float = 1
) -> bytes:
    return (
        f'vllm:num_requests_running{{engine="0"}} {running}\n'
        f'vllm:num_requests_waiting{{engine="0"}} {waiting}\n'
        f'vllm:prefix_cache_queries_total{{engine="0"}} {queries}\n'
        f'vllm:prefix_cache_queries_created{{engine="0"}} {epoch}\n'
        f'vllm:prefix_cache_hits_total{{engine="0"}} {hits}\n'
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'
    ).encode()


class Engine:
    """`async with Engine() as engine:` serves until the block ends; `seen` counts paths."""

    def __init__(self) -> None:
        self.health = 200
        self.paused: bool | None = None  # None: no such path, as without dev mode
        self.models: Any = {"data": [{"id": "tiny", "parent": None, "max_model_len": 2048}]}
        self.models_status = 200
        self.metrics = vllm_text()
        self.metrics_status = 200
        self.metrics_path = "/metrics"
        self.key = ""
        self.delay_s = 0.0
        self.event_sources: Any = None  # of GET /kv_event_sources; None: 404
        self.tokenize: Any = None  # body of POST /tokenize -> token ids; None: 404
        self.tokenize_gate = asyncio.Event()  # an answer to that waits here
        self.tokenize_gate.set()
        self.seen: dict[str, int] = {}
        self.gate = asyncio.Event()  # a stream waits here after its first token
        self.gate.set()
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.seen[path] = self.seen.get(path, 0) + 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        refused = self.key and request.headers.get("Authorization") != f"Bearer {self.key}"
        if path == "/health":
            return web.Response(status=self.health)
        if path == "/is_paused" and self.paused is not None:
            return web.json_response({"is_paused": self.paused})
        if path == "/v1/models":
            if refused:
                return web.json_response({"error": "Unauthorized"}, status=401)
            if isinstance(self.models, bytes):
                return web.Response(body=self.models, status=self.models_status)
            return web.json_response(self.models, status=self.models_status)
        if path == "/kv_event_sources" and self.event_sources is not None:
            return web.json_response(self.event_sources)
        if path == "/v1/completions":
            return await self._stream(request)
        if path == "/tokenize" and self.tokenize is not None:
            if refused:
                return web.json_response({"error": "Unauthorized"}, status=401)
            await self.tokenize_gate.wait()
            ids = self.tokenize(await request.json())
            return web.json_response({"count": len(ids), "tokens": ids})
        if path == self.metrics_path:
            return web.Response(body=self.metrics, status=self.metrics_status)
        return web.Response(status=404)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await response.write(b'data: {"choices": [{"index": 0, "text": "t%d"}]}\n\n' % number)
            await self.gate.wait()
        await response.write(b'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response
