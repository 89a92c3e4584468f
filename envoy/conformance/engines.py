"""Modelled engines that the suite serves itself (--serve): metrics, models, health, nothing else.

A picker chooses by what its engines say, so a case that wants "the emptier one" has to be the
engines. They answer where the picker's pool is configured to look, with vLLM's metric names.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from warmlane.envoy.conformance.target import Target, address


class EngineState(msgspec.Struct, kw_only=True):
    """What one engine's metrics say. kv: share of KV cache in use, 0..1."""

    running: int = 0
    waiting: int = 0
    kv: float = 0.0
    adapters: tuple[str, ...] = ()
    up: bool = True


class ModelledEngine:
    """One address. `await start()`, change `state`, `await stop()`."""

    def __init__(self, endpoint: str, model: str, others: tuple[str, ...], adapter: str) -> None:
        self.endpoint = endpoint
        self.state = EngineState()
        self._model = model
        self._others = others
        self._adapter = adapter
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. OSError when the address is taken."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        for path in ("/health", "/ping", "/version"):
            app.router.add_get(path, self._health)
        host, port = address(self.endpoint, "--endpoint")
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def _models(self, request: web.Request) -> web.Response:
        def card(name: str, parent: str | None) -> dict[str, Any]:
            return {
                "id": name,
                "object": "model",
                "created": 1,
                "owned_by": "vllm",
                "root": name,
                "parent": parent,
                "max_model_len": 131_072,
            }

        cards = [card(name, None) for name in (self._model, *self._others)]
        if self._adapter:
            cards.append(card(self._adapter, self._model))
        return web.json_response({"object": "list", "data": cards})

    async def _metrics(self, request: web.Request) -> web.Response:
        state = self.state
        model = f'{{engine="0",model_name="{self._model}"}}'
        running = ",".join(state.adapters)
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{model} {state.running}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{model} {state.waiting}",
            "# TYPE vllm:kv_cache_usage_perc gauge",
            f"vllm:kv_cache_usage_perc{model} {state.kv}",
            "# TYPE vllm:cache_config_info gauge",
            'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="8192"} 1.0',
            "# TYPE vllm:lora_requests_info gauge",
            'vllm:lora_requests_info{max_lora="4",running_lora_adapters="'
            + running
            + '",waiting_lora_adapters=""} 1.7e+09',
        ]
        return web.Response(text="\n".join(lines) + "\n")


class ServedEngines:
    """All of them. Changes wait `settle_s`, the time in which a picker must have looked."""

    def __init__(self, target: Target) -> None:
        self._settle_s = target.settle_s
        others = tuple(name for name in target.aliased if name != target.model)
        self._engines = {
            endpoint: ModelledEngine(endpoint, target.model, others, target.adapter)
            for endpoint in (target.endpoints if target.serve else ())
        }
        self._changed = False

    async def open(self) -> None:
        for engine in self._engines.values():
            await engine.start()
        if self._engines:
            await asyncio.sleep(self._settle_s)

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.stop()

    async def set(self, states: dict[str, EngineState]) -> None:
        """The named engines say this, all others are idle."""
        self._changed = True
        for endpoint, engine in self._engines.items():
            state = states.get(endpoint, EngineState())
            if engine.state.up and not state.up:
                await engine.stop()
            elif state.up and not engine.state.up:
                await engine.start()
            engine.state = state
        await asyncio.sleep(self._settle_s)

    async def reset(self) -> None:
        """All up, idle and alike, if they are not."""
        if self._changed:
            await self.set({})
            self._changed = False
