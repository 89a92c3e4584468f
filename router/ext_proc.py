"""`warmlane ext-proc`: the endpoint picker of Envoy-based gateways, its signals and its way down.

    9002  external processing streams (and gRPC health), TLS unless --insecure
    9003  gRPC health, plaintext
    9090  /metrics, /healthz, /readyz, /admin/v1/...

    SIGHUP           reads certificate, config file and keys again
    SIGTERM, SIGINT  health turns NOT_SERVING; after --drain-delay-s the gateway is told to open no
                     more streams and those under way finish, at most --drain-s

Floor 8: joins the running router, the Envoy face and the admin interface.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from typing import Any

import msgspec
import uvloop

from warmlane import __version__
from warmlane.envoy.server import PortTaken, Server, start_server
from warmlane.router.build import Running, build
from warmlane.router.config import Config
from warmlane.router.config_kube import with_inference_pool
from warmlane.router.config_load import from_data, read, with_flags
from warmlane.router.errors import ConfigError
from warmlane.router.proxy.admin import Admin, is_loopback, start_admin
from warmlane.router.serve import set_up_logging

log = logging.getLogger("warmlane")

# Streams leave no reference cycles; a collection would walk over tens of thousands of open tickets.
_COLLECT_EVERY = (500_000, 20, 20)
_METRICS_PORT = 9090


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane ext-proc`. What is not given keeps the config file's value."""

    def option(*names: str, text: str, **more: Any) -> None:
        parser.add_argument(*names, help=text, default=argparse.SUPPRESS, **more)

    option(
        "--replica",
        text="a replica to choose, http://IP:port; repeat for more",
        action="append",
        metavar="URL",
    )
    option("--config", text="YAML or JSON file (see warmlane check-config)", metavar="FILE")
    option("--pool-name", text="InferencePool to serve; with replicas: the pool's name")
    option("--pool-namespace", text="namespace of the InferencePool", metavar="NAME")
    option("--kubeconfig", text="Kubernetes from outside a cluster", metavar="FILE")
    option("--host", text="address of the gRPC ports (127.0.0.1)")
    option("--port", "--grpc-port", text="ext_proc port (9002)", type=int, metavar="PORT")
    option("--health-port", "--grpc-health-port", text="health port (9003)", type=int)
    option(
        "--metrics-host",
        text="address of metrics, and of admin where it is safe (127.0.0.1)",
        metavar="HOST",
    )
    option("--metrics-port", text="port of metrics and admin (9090)", type=int, metavar="PORT")
    option("--insecure", text="plaintext gRPC in place of TLS", action="store_true")
    option("--tls-cert", text="PEM certificate, watched; default: self-signed", metavar="FILE")
    option("--tls-key", text="PEM key of --tls-cert", metavar="FILE")
    option("--transport", text="gRPC transport (auto)", choices=["auto", "native", "grpcio"])
    option(
        "--response-level",
        text="0 requests only, 1 and the answer's headers and end, 2 and its body (1)",
        type=int,
        choices=[0, 1, 2],
    )
    option("--endpoints", text="one address, or the ordered list", choices=["one", "ordered"])
    option("--shadow", text="decide and report, change nothing", action="store_true")
    option(
        "--share", text="share of requests that are decided, the rest as with --shadow", type=float
    )
    option("--policy", text="how a replica is chosen (default)", metavar="NAME")
    option("--engine-api-key-file", text="key for probes and scrapes", metavar="FILE")
    option("--kv-events", text="KV cache events: off, auto, or EVENTS[,REPLAY]", metavar="WHERE")
    option("--zone", text="zone of this picker; replicas of the same zone are preferred")
    option("--test-headers", text="obey the conformance suite's headers", action="store_true")
    option("--drain-s", text="longest wait for streams under way at SIGTERM (60)", type=float)
    option("--zap-encoder", text=argparse.SUPPRESS)  # of the Go pickers' manifests; no meaning here
    parser.add_argument(
        "--drain-delay-s",
        help="time between NOT_SERVING and the end of new streams",
        type=float,
        default=0.0,
        metavar="S",
    )
    parser.add_argument(
        "--log-level",
        help="what to log",
        choices=["debug", "info", "warning", "error"],
        default="info",
    )


_SECTION = {
    "host": "host",
    "port": "port",
    "health_port": "health_port",
    "grpc_port": "port",
    "grpc_health_port": "health_port",
    "insecure": "insecure",
    "tls_cert": "tls_cert",
    "tls_key": "tls_key",
    "transport": "transport",
    "response_level": "response_level",
    "endpoints": "endpoints",
    "test_headers": "test_headers",
}


def config_from(args: argparse.Namespace) -> Config:
    """Config file with the flags laid over it. ConfigError: bad, or nowhere to route to."""
    given = vars(args)
    path = given.get("config")
    data = with_flags(
        read(path) if path else {},
        replicas=given.get("replica", ()),
        admin_host=given.get("metrics_host"),
        admin_port=given.get("metrics_port"),
        policy=given.get("policy"),
        engine_api_key_file=given.get("engine_api_key_file"),
        kv_events=given.get("kv_events"),
    )
    if not given.get("replica"):
        data = with_inference_pool(
            data, given.get("pool_name"), given.get("pool_namespace"), given.get("kubeconfig")
        )
    section = dict(data.get("ext_proc") or {})
    section.update({field: given[name] for name, field in _SECTION.items() if name in given})
    data["ext_proc"] = section
    watch = dict(data.get("shadow") or {})
    if given.get("shadow"):
        watch["mode"] = "shadow"
    if "share" in given:
        watch["share"] = given["share"]
    data["shadow"] = watch
    admin = dict(data.get("admin") or {})
    admin.setdefault("port", _METRICS_PORT)
    if not is_loopback(admin.get("host", "127.0.0.1")) and not admin.get("token_file"):
        admin.setdefault("metrics_only", True)  # Prometheus in a cluster asks from elsewhere
    data["admin"] = admin
    if "zone" in given:
        data["zone"] = given["zone"]
    if "drain_s" in given:
        data["timeouts"] = {**(data.get("timeouts") or {}), "drain_s": given["drain_s"]}
    config = from_data(data, where=str(path) if path else "options")
    if "pool_name" in given and len(config.pools) == 1:
        pool = msgspec.structs.replace(config.pools[0], name=given["pool_name"])
        config = msgspec.structs.replace(config, pools=[pool])
    first = config.pools[0]
    if not path and not first.replicas and first.discovery.kubernetes is None:
        raise ConfigError(
            "no replica to route to: give --replica URL, --pool-name NAME or --config FILE"
        )
    return config


class ExtProc:
    """Router, Envoy face and admin interface, all started. Made by `start`."""

    def __init__(self, running: Running, server: Server, admin: Admin) -> None:
        self.running = running
        self.server = server
        self.admin = admin

    async def drain(self, delay_s: float = 0.0, timeout_s: float | None = None) -> bool:
        """Not ready at once; True: every stream ended by itself."""
        self.running.draining = True
        return await self.server.drain(delay_s, timeout_s)

    async def close(self) -> None:
        """Cut what is still under way and free everything."""
        self.running.draining = True
        await self.server.close()
        await self.running.close()
        await self.admin.close()


async def start(config: Config) -> ExtProc:
    """The whole picker on the running loop. ConfigError; PortTaken; OSError of the admin port."""
    running = await build(config)
    running.fixed_pools = True  # ways, predictions and shadows are made for the pools of the start
    running.metrics.version = __version__
    server: Server | None = None
    try:
        server = await start_server(running)

        def again() -> list[str]:
            return running.reload(running.config)

        admin = await start_admin(running, config, again)
    except BaseException:
        if server is not None:
            await server.close()
        await running.close()
        raise
    return ExtProc(running, server, admin)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. 0: stopped by one; 1: cannot listen; ConfigError: bad input."""
    config = config_from(args)
    set_up_logging(args.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, args))
    except OSError as error:
        sys.stderr.write(f"warmlane ext-proc: cannot listen on {error}\n")
        return 1
    return 0


async def _serve(config: Config, args: argparse.Namespace) -> None:
    picker = await start(config)
    gc.collect()
    gc.freeze()  # modules and config live as long as the process
    gc.set_threshold(*_COLLECT_EVERY)
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[str] = asyncio.Queue()
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        loop.add_signal_handler(getattr(signal, name), signals.put_nowait, name)
    sys.stdout.write(banner(picker))
    sys.stdout.flush()
    try:
        while await signals.get() == "SIGHUP":
            _reload(picker, args)
        log.info("event=draining streams=%d", picker.server.picker.open)
        drain = asyncio.ensure_future(picker.drain(args.drain_delay_s))
        again = asyncio.ensure_future(signals.get())  # a second signal cuts
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        whole = drain.done() and drain.result()
        drain.cancel()
        again.cancel()
        log.info("event=stopped how=%s", "drained" if whole else "cut")
    finally:
        await picker.close()


def _reload(picker: ExtProc, args: argparse.Namespace) -> None:
    picker.server.reload_files()
    try:
        picker.running.reload(config_from(args))
    except ConfigError as error:
        picker.running.metrics.reloaded("failed")
        log.error('event=reload result=failed why="%s"', error)


def banner(picker: ExtProc) -> str:
    """What the operator sees at start."""
    server, options = picker.server, picker.server.options
    assert server.transport is not None, "started"
    replicas = [replica for pool in picker.running.router.pools.values() for replica in pool]
    names = ", ".join(replica.endpoint for replica in replicas[:8])
    tls = "plaintext" if options.insecure else "TLS"
    return (
        f"warmlane {__version__} picks endpoints on {options.host}:{server.port}"
        f" ({tls}, {server.transport.name} transport)\n"
        f"  health on {options.host}:{server.health_port}\n"
        f"  admin and metrics on http://{picker.admin.host}:{picker.admin.port}\n"
        f"  replicas ({len(replicas)}): {names or 'none yet'}\n"
    )


__all__ = ["ExtProc", "PortTaken", "add_arguments", "config_from", "run", "start"]
