"""`warmlane fake-engine`: the modelled replica behind vLLM's HTTP surface and ZMQ events.

Puts the parts together: engine and driver (the model in wall-clock time), the inference and the
control paths, the event publisher, the fault switches, and what vLLM does on SIGTERM. One event
loop, one process; several replicas may share a process (`--replicas`), which saves start-up time
but also makes them share one core.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import msgspec
import uvloop

from warmlane.router.sim.driver import Driver
from warmlane.router.sim.engine import Engine, EngineConfig
from warmlane.router.sim.faults import Fault, Faults, parse_fault
from warmlane.router.sim.server_admin import AdminApi
from warmlane.router.sim.server_api import InferenceApi
from warmlane.router.sim.server_events import FORMS, EventPublisher
from warmlane.router.sim.server_http import Exchange, HttpServer
from warmlane.router.sim.server_metrics import EngineMetrics
from warmlane.router.sim.server_models import Models
from warmlane.router.sim.timing import DEFAULT_PRESET, PRESETS

GUARDED = ("/v1", "/v2", "/inference", "/cohere")  # what vLLM's --api-key guards


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of one fake engine; 0 or "" means the preset's or vLLM's default."""

    model: str = "fake"
    host: str = "127.0.0.1"
    port: int = 0
    gpu: str = DEFAULT_PRESET
    blocks: int = 0
    block_size: int = 16
    speed: float = 1.0
    scale: float = 1.0
    tick_s: float = 0.002
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    max_model_len: int = 131_072
    loras: tuple[str, ...] = ()
    max_loras: int = 1
    enable_lora: bool = False
    adapter_load_s: float = 0.0
    adapter_root: str = ""
    api_key: str = ""
    kv_events: str = ""
    kv_events_topic: str = ""
    kv_events_form: str = "map"
    replay_endpoint: str = ""
    prompt_tokens_details: bool = True
    shutdown_timeout_s: float = 0.0
    faults: tuple[Fault, ...] = ()

    def engine_config(self) -> EngineConfig:
        """The model's arguments. The preset's cache and step budget shrink with `scale`."""
        timing = msgspec.structs.replace(PRESETS[self.gpu], scale=self.scale)
        blocks = self.blocks or int(timing.kv_tokens / self.scale) // self.block_size
        budget = self.max_num_batched_tokens or max(64, int(timing.step_tokens / self.scale))
        return EngineConfig(
            timing=timing,
            blocks=blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs or timing.max_seqs,
            max_num_batched_tokens=budget,
            max_loras=self.max_loras,
            events=bool(self.kv_events),
        )


class FakeEngine:
    """One replica: `await start()`, `port`, `await stop()`."""

    def __init__(self, options: FakeOptions) -> None:
        self.options = options
        self.engine = Engine(options.engine_config())
        self.faults = Faults()
        self.http = HttpServer(self._handle)
        self.events: EventPublisher | None = None
        self._routes: dict[tuple[str, str], Callable[[Exchange], None]] = {}
        self._paths: frozenset[str] = frozenset()

    @property
    def port(self) -> int:
        return self.http.port

    @property
    def url(self) -> str:
        return f"http://{self.http.host}:{self.http.port}"

    async def start(self) -> None:
        """Bind the port and the event sockets."""
        options = self.options
        if options.kv_events:
            self.events = EventPublisher(
                options.kv_events,
                block_size=options.block_size,
                replay_endpoint=options.replay_endpoint,
                topic=options.kv_events_topic,
                form=options.kv_events_form,
            )
        publish = self.events.publish if self.events is not None else None
        self.driver = Driver(self.engine, options.speed, options.tick_s, publish)
        limit = min(options.max_model_len, self.engine.context_tokens)
        lora = options.enable_lora or bool(options.loras)
        root = options.adapter_root
        models = Models(options.model, list(options.loras), limit, lora=lora, root=root)
        self.models = models
        max_loras = options.max_loras if lora else None
        metrics = EngineMetrics(options.model, self.engine, self.driver, max_loras)
        self.inference = InferenceApi(
            self.driver,
            models,
            metrics,
            self.faults,
            max_model_len=limit,
            details=options.prompt_tokens_details,
        )
        self.admin = AdminApi(
            *(self.driver, models, metrics, self.faults, self.inference, self.http, self.events),
            load_s=options.adapter_load_s,
        )
        self._routes = self.inference.routes() | self.admin.routes()
        self._paths = frozenset(path for _, path in self._routes)
        await self.http.start(options.host, options.port)
        for fault in options.faults:
            self.admin.apply(msgspec.structs.replace(fault))

    async def stop(self) -> None:
        """What vLLM does on SIGTERM.

        Without a shutdown timeout running streams end at once with finish_reason "abort". With one
        they may run on, new requests are answered with an abort, and then the port closes.
        """
        if self.options.shutdown_timeout_s > 0:
            self.inference.draining = True
            idle = asyncio.Event()
            self.driver.when_idle(idle.set)
            with suppress(TimeoutError):
                await asyncio.wait_for(idle.wait(), self.options.shutdown_timeout_s)
        await self.http.stop_listening()
        self.driver.abort_all()
        await asyncio.sleep(0.05)
        await self.close()

    async def close(self) -> None:
        """Stop at once, as a killed process would."""
        self.driver.close()
        self.admin.close()
        await self.http.close()
        if self.events is not None:
            self.events.close()
            self.events = None

    def _handle(self, exchange: Exchange) -> None:
        key = self.options.api_key
        if key and exchange.path.startswith(GUARDED):
            given = exchange.headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + key.encode()):
                exchange.respond(401, b'{"error":"Unauthorized"}')
                return
        route = self._routes.get((exchange.method, exchange.path))
        if route is not None:
            route(exchange)
        elif exchange.path in self._paths:
            exchange.respond(405, b'{"detail":"Method Not Allowed"}')
        else:
            exchange.respond(404, b'{"detail":"Not Found"}')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane fake-engine`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="port; 0 takes a free one and prints it")
    add("--model", default="fake", help="served model name (default: %(default)s)")
    add("--gpu", default=DEFAULT_PRESET, choices=sorted(PRESETS), help="timing preset")
    add("--blocks", type=int, default=0, help="KV blocks (default: what the preset's memory holds)")
    add("--block-size", type=int, default=16, help="tokens per block (default: %(default)s)")
    add("--speed", type=float, default=1.0, help="times faster than the real replica")
    add(
        "--scale",
        type=float,
        default=1.0,
        help="one prompt token stands for this many real ones (default: %(default)s)",
    )
    add("--tick-ms", type=float, default=2.0, help="shortest time between two wake-ups")
    add("--max-num-seqs", type=int, default=0, help="sequences in one batch")
    add("--max-num-batched-tokens", type=int, default=0, help="token budget of one step")
    add("--max-model-len", type=int, default=131_072, help="longest context in tokens")
    add("--lora", nargs="*", default=[], metavar="NAME", help="adapters served from the start")
    add("--enable-lora", action="store_true", help="allow adapters to be loaded at run time")
    add("--max-loras", type=int, default=1, help="adapters in one batch (default: %(default)s)")
    add("--adapter-load-s", type=float, default=0.0, help="seconds that a load takes")
    add("--adapter-root", default="", help="adapters are found below this path alone")
    add("--api-key", default="", help="require this key on /v1")
    add(
        "--kv-events",
        default="",
        metavar="ENDPOINT",
        help="publish KV events on this ZMQ endpoint (bound when it holds * or ::)",
    )
    add("--kv-events-topic", default="", help="topic of the events")
    add("--kv-events-form", default="map", choices=FORMS, help="encoding of the events")
    add("--replay-endpoint", default="", metavar="ENDPOINT", help="bind the replay socket here")
    add(
        "--no-prompt-tokens-details",
        action="store_true",
        help="leave cached_tokens out of usage, as vLLM does by default",
    )
    add(
        "--shutdown-timeout",
        type=float,
        default=0.0,
        metavar="S",
        help="on SIGTERM let running requests end within S seconds",
    )
    add(
        "--fault",
        action="append",
        default=[],
        metavar="KIND[:COUNT[:AFTER]]",
        help="switch a fault on from the start (see POST /fault)",
    )
    add(
        "--replicas",
        type=int,
        default=1,
        help="replicas in this process, on consecutive ports (or free ones with --port 0)",
    )


def options_from(args: argparse.Namespace) -> FakeOptions:
    """Checked options. ValueError with one clear line."""
    if args.blocks and args.blocks < 2:
        raise ValueError(f"--blocks must be at least 2: {args.blocks}")
    for name in ("block_size", "replicas"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if args.speed <= 0 or args.scale <= 0:
        raise ValueError("--speed and --scale must be above 0")
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port is out of range: {args.port}")
    return FakeOptions(
        model=args.model,
        host=args.host,
        port=args.port,
        gpu=args.gpu,
        blocks=args.blocks,
        block_size=args.block_size,
        speed=args.speed,
        scale=args.scale,
        tick_s=args.tick_ms / 1000,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        loras=tuple(args.lora),
        max_loras=args.max_loras,
        enable_lora=args.enable_lora,
        adapter_load_s=args.adapter_load_s,
        adapter_root=args.adapter_root,
        api_key=args.api_key,
        kv_events=args.kv_events,
        kv_events_topic=args.kv_events_topic,
        kv_events_form=args.kv_events_form,
        replay_endpoint=args.replay_endpoint,
        prompt_tokens_details=not args.no_prompt_tokens_details,
        shutdown_timeout_s=args.shutdown_timeout,
        faults=tuple(parse_fault(text) for text in args.fault),
    )


def replicas_of(options: FakeOptions, count: int) -> list[FakeEngine]:
    """`count` replicas on consecutive ports (free ones when the port is 0)."""
    if count > 1 and (options.kv_events or options.replay_endpoint):
        raise ValueError("--kv-events and --replay-endpoint need a process per replica")
    return [
        FakeEngine(
            msgspec.structs.replace(options, port=options.port + index if options.port else 0)
        )
        for index in range(count)
    ]


async def _serve(engines: list[FakeEngine]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    for engine in engines:
        await engine.start()
        print(f"fake-engine listening on {engine.url}", flush=True)
    await stop.wait()
    await asyncio.gather(*(engine.stop() for engine in engines))


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C. Exit status 2 on bad options or a port in use."""
    try:
        options = options_from(args)
        engines = replicas_of(options, args.replicas)
        uvloop.run(_serve(engines))
    except (ValueError, OSError) as error:
        print(f"warmlane fake-engine: {error}", file=sys.stderr)
        return 2
    return 0
