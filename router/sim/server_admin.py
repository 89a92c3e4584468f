"""Control paths of the fake engine: models, health, LoRA, tokenize, sleep, pause, faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qs

import msgspec

from warmlane.router.sim.driver import Driver
from warmlane.router.sim.faults import Fault, Faults
from warmlane.router.sim.server_answers import encode, error_body
from warmlane.router.sim.server_api import InferenceApi
from warmlane.router.sim.server_events import EventPublisher
from warmlane.router.sim.server_http import Exchange, HttpServer
from warmlane.router.sim.server_jobs import Refusal, chat_prompt, decode_body
from warmlane.router.sim.server_metrics import EngineMetrics
from warmlane.router.sim.server_models import Models
from warmlane.router.sim.tokens import detokenize, tokenize

VERSION = "0.32.0"  # the vLLM whose surface this is


class AdminApi:
    """Everything that is not inference."""

    def __init__(
        self,
        driver: Driver,
        models: Models,
        metrics: EngineMetrics,
        faults: Faults,
        inference: InferenceApi,
        http: HttpServer,
        events: EventPublisher | None,
        load_s: float = 0.0,
    ) -> None:
        """load_s: wall seconds that a load of an adapter takes."""
        self._load_s = load_s
        self._driver = driver
        self._models = models
        self._metrics = metrics
        self._faults = faults
        self._inference = inference
        self._http = http
        self._events = events
        self._asleep = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._slowdowns: list[float] = []
        self._full_speed = driver.speed
        self._tasks: set[asyncio.Task[None]] = set()

    def routes(self) -> dict[tuple[str, str], Callable[[Exchange], None]]:
        table: dict[tuple[str, str], Callable[[Exchange], None]] = {
            ("GET", "/health"): lambda exchange: exchange.respond(200),
            ("GET", "/ping"): lambda exchange: exchange.respond(200),
            ("POST", "/ping"): lambda exchange: exchange.respond(200),
            ("GET", "/version"): lambda exchange: _json(exchange, {"version": VERSION}),
            ("GET", "/load"): self._load,
            ("GET", "/metrics"): self._metrics_page,
            ("GET", "/v1/models"): lambda exchange: _json(exchange, self._models.listing()),
            ("POST", "/tokenize"): self._guard(self._tokenize),
            ("POST", "/detokenize"): self._guard(self._detokenize),
            ("POST", "/v1/load_lora_adapter"): self._guard(self._load_adapter),
            ("POST", "/v1/unload_lora_adapter"): self._guard(self._unload_adapter),
            ("POST", "/reset_prefix_cache"): self._reset_cache,
            ("POST", "/sleep"): self._sleep,
            ("POST", "/wake_up"): self._wake_up,
            ("GET", "/is_sleeping"): lambda exchange: _json(
                exchange, {"is_sleeping": self._asleep}
            ),
            ("POST", "/pause"): self._pause,
            ("POST", "/resume"): self._resume,
            ("GET", "/is_paused"): lambda exchange: _json(
                exchange, {"is_paused": self._driver.paused}
            ),
            ("GET", "/fault"): self._list_faults,
            ("POST", "/fault"): self._guard(self._add_fault),
            ("DELETE", "/fault"): self._clear_faults,
        }
        if self._events is not None:
            table["GET", "/kv_event_sources"] = self._sources
        return table

    def apply(self, fault: Fault) -> None:
        """Switch a fault on."""
        if fault.kind == "refuse":
            self._run(self._http.stop_listening())
            self._http.close_idle()
            self._later(fault.seconds, lambda: self._run(self._http.resume_listening()))
        elif fault.kind == "slow":
            self._slowdowns.append(fault.factor)
            self._set_speed()
            self._later(fault.seconds, lambda: self._recover(fault.factor))
        else:
            self._faults.add(fault)

    def close(self) -> None:
        """Pending recoveries do not come any more."""
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _recover(self, factor: float) -> None:
        self._slowdowns.remove(factor)
        self._set_speed()

    def _set_speed(self) -> None:
        self._driver.set_speed(self._full_speed / max(self._slowdowns, default=1.0))

    def _run(self, job: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def fire() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(seconds, fire)
        self._timers.add(timer)

    def _guard(
        self, handle: Callable[[Exchange, dict[str, Any]], None]
    ) -> Callable[[Exchange], None]:
        """Decode the body; turn a Refusal into vLLM's error answer."""

        def guarded(exchange: Exchange) -> None:
            try:
                handle(exchange, decode_body(exchange.body))
            except Refusal as refusal:
                body = error_body(refusal.status, refusal.message, refusal.kind, refusal.param)
                exchange.respond(refusal.status, body)

        return guarded

    def _load(self, exchange: Exchange) -> None:
        _json(exchange, {"server_load": self._inference.in_flight})

    def _metrics_page(self, exchange: Exchange) -> None:
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        exchange.respond(200, self._metrics.render(), kind)

    def _tokenize(self, exchange: Exchange, body: dict[str, Any]) -> None:
        if "messages" in body:
            ids = chat_prompt(body)
        elif isinstance(body.get("prompt"), str):
            ids = tokenize(body["prompt"].encode("utf-8", "surrogatepass"))
        else:
            raise Refusal(400, "1 validation error:\n  prompt: Field required", "Bad Request")
        answer = {
            "count": len(ids),
            "max_model_len": self._models.max_model_len,
            "tokens": ids.tolist(),
            "token_strs": [detokenize([i]) for i in ids] if body.get("return_token_strs") else None,
        }
        _json(exchange, answer)

    def _detokenize(self, exchange: Exchange, body: dict[str, Any]) -> None:
        try:
            _json(exchange, {"prompt": detokenize(body["tokens"])})
        except (KeyError, TypeError, OverflowError) as error:
            raise Refusal(400, f"1 validation error:\n  tokens: {error!r}", "Bad Request") from None

    def _load_adapter(self, exchange: Exchange, body: dict[str, Any]) -> None:
        name, path = body.get("lora_name"), body.get("lora_path")
        self._models.check_load(name, path)

        def done(exchange: Exchange, body: dict[str, Any]) -> None:
            self._models.load(name, path)
            text = f"Success: LoRA adapter '{name}' added successfully."
            exchange.respond(200, text.encode(), b"text/plain; charset=utf-8")

        if self._load_s:
            self._later(self._load_s, lambda: self._guard(done)(exchange))
        else:
            done(exchange, body)

    def _unload_adapter(self, exchange: Exchange, body: dict[str, Any]) -> None:
        name = body.get("lora_name")
        self._models.unload(name)
        text = f"Success: LoRA adapter '{name}' removed successfully."
        exchange.respond(200, text.encode(), b"text/plain; charset=utf-8")

    def _reset_cache(self, exchange: Exchange) -> None:
        _json(exchange, {"success": self._driver.engine.reset_cache()})

    def _sleep(self, exchange: Exchange) -> None:
        query = parse_qs(exchange.query)
        given = query.get("level", ["1"])[0]
        level = int(given) if given.isdigit() else 1
        mode = query.get("mode", ["abort"])[0]

        def done() -> None:
            self._asleep = True
            self._metrics.sleep_level = min(level, 2)
            if level >= 1:
                self._driver.engine.reset_cache()
            _json(exchange, {"status": "sleeping", "level": level})

        self._driver.pause(mode, done)

    def _wake_up(self, exchange: Exchange) -> None:
        self._asleep = False
        self._metrics.sleep_level = 0
        self._driver.resume()
        _json(exchange, {"status": "awake", "tags": None})

    def _pause(self, exchange: Exchange) -> None:
        mode = parse_qs(exchange.query).get("mode", ["abort"])[0]
        if mode not in ("abort", "wait", "keep"):
            exchange.respond(400, error_body(400, f"unknown mode {mode}", "BadRequestError"))
            return

        def done() -> None:
            self._driver.engine.reset_cache()
            _json(exchange, {"status": "paused"})

        self._driver.pause(mode, done)

    def _resume(self, exchange: Exchange) -> None:
        self._driver.resume()
        _json(exchange, {"status": "resumed"})

    def _sources(self, exchange: Exchange) -> None:
        assert self._events is not None
        _json(exchange, {"0": self._events.sources()})

    def _list_faults(self, exchange: Exchange) -> None:
        _json(exchange, {"active": self._faults.active, "fired": self._faults.fired})

    def _add_fault(self, exchange: Exchange, body: dict[str, Any]) -> None:
        try:
            fault = msgspec.convert(body, Fault)
        except (msgspec.ValidationError, ValueError) as error:
            raise Refusal(400, str(error)) from None
        self.apply(fault)
        self._list_faults(exchange)

    def _clear_faults(self, exchange: Exchange) -> None:
        self._faults.clear()
        self._list_faults(exchange)


def _json(exchange: Exchange, value: Any) -> None:
    exchange.respond(200, encode(value))
