"""`warmlane serve`: the running router with its two faces, signals, and the way down. Floor 8.

    SIGHUP           reads the config file, keys and certificates again
    SIGTERM, SIGINT  /readyz turns 503; after --drain-delay-s the listener closes, requests under
                     way finish, at most --drain-s; a second signal cuts them

A program that wants the whole server inside its own loop uses `start(config)` and `Server.close`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvloop

from warmlane import __version__
from warmlane.router.build import Running, build
from warmlane.router.config import Config
from warmlane.router.config_kube import with_inference_pool
from warmlane.router.config_load import from_data, read, with_flags
from warmlane.router.errors import ConfigError
from warmlane.router.proxy.admin import Admin, start_admin
from warmlane.router.proxy.server import Proxy, start_proxy
from warmlane.router.shadow import Shadow

log = logging.getLogger("warmlane")

# Requests leave no reference cycles (tests/proxy/test_garbage.py): what little garbage there is
# comes from connections and scrapes. Collecting it every 700 allocations would only walk over the
# requests under way again and again.
_COLLECT_EVERY = (50_000, 20, 20)
_MAX_FILES = 262_144  # two sockets a request at many times limits.connections
_POLICIES = "default, round-robin, least-requests, random, or the name of one scorer"


class BindError(Exception):
    """An address cannot be listened on; the message is one line for the operator."""


class Server:
    """Router, proxy and admin interface, all started. Made by `start`."""

    def __init__(self, running: Running, proxy: Proxy, admin: Admin) -> None:
        self.running = running
        self.proxy = proxy
        self.admin = admin
        self.router = running.router

    @property
    def url(self) -> str:
        """Where clients connect."""
        listen = self.running.config.listen
        return f"{'https' if listen.tls_cert else 'http'}://{_host(listen.host)}:{self.proxy.port}"

    @property
    def admin_url(self) -> str:
        return f"http://{_host(self.admin.host)}:{self.admin.port}"

    async def drain(self, delay_s: float = 0.0, timeout_s: float | None = None) -> bool:
        """Not ready at once; after `delay_s` no new connections. True: every request ended."""
        self.running.draining = True
        await asyncio.sleep(delay_s)
        return await self.proxy.drain(timeout_s)

    async def close(self) -> None:
        """Cut what is still under way and free everything."""
        self.running.draining = True
        await self.proxy.close()
        await self.running.close()
        await self.admin.close()


async def start(config: Config, reload: Callable[[], Config] | None = None) -> Server:
    """The whole server on the running loop. ConfigError; BindError.

    reload: gives the config to follow at POST /admin/v1/reload; default: the same one, which
    still reads key files again.
    """
    running = await build(config)
    running.metrics.version = __version__
    proxy: Proxy | None = None
    try:
        with _Binding(config.listen.host, config.listen.port):
            proxy = await start_proxy(running.router, config)
        running.followers.append(proxy.state.follow)
        proxy.state.tokens = running.feeds.tokens
        running.shadow = proxy.state.shadow = Shadow(running.router, config.shadow)

        def again() -> list[str]:
            return running.reload(reload() if reload is not None else running.config)

        with _Binding(config.admin.host, config.admin.port):
            admin = await start_admin(running, config, again)
    except BaseException:
        if proxy is not None:
            await proxy.close()
        await running.close()
        raise
    return Server(running, proxy, admin)


class _Binding:
    """Turns the OSError of a bind into a BindError that names the address."""

    def __init__(self, host: str, port: int) -> None:
        self._address = f"{_host(host)}:{port}"

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise BindError(f"cannot listen on {self._address}: {why}") from error


# The command --------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane serve`. What is not given keeps the config file's value."""

    def option(name: str, text: str, **more: Any) -> None:
        parser.add_argument(name, help=text, default=argparse.SUPPRESS, **more)

    option(
        "--replica",
        "a replica to route to, http(s)://host:port; repeat for more",
        action="append",
        metavar="URL",
    )
    option("--pool-name", "an InferencePool to take replicas from", metavar="NAME")
    option("--pool-namespace", "its namespace (that of this process)", metavar="NAME")
    option("--kubeconfig", "how to reach Kubernetes from outside a cluster", metavar="FILE")
    option("--config", "YAML or JSON file (see warmlane check-config)", metavar="FILE")
    option("--host", "address for clients (127.0.0.1)")
    option("--port", "port for clients, 0 takes a free one (8080)", type=int)
    option("--admin-host", "address of /metrics, /readyz, /admin (127.0.0.1)", metavar="HOST")
    option("--admin-port", "port of the same, 0 takes a free one (8081)", type=int, metavar="PORT")
    option("--policy", f"how a replica is chosen: {_POLICIES}", metavar="NAME")
    option("--api-key-file", "keys that clients must show, one per line", metavar="FILE")
    option("--engine-api-key-file", "key for probes and scrapes of the replicas", metavar="FILE")
    option(
        "--tokenizer",
        "token ids for exact matching: off, engine, or the folder of the model's tokenizer",
        metavar="PATH",
    )
    option(
        "--kv-events",
        "events of the engines' KV caches: off, auto (ask the engines) or EVENTS[,REPLAY]",
        metavar="ENDPOINT",
    )
    option(
        "--shadow",
        "choose by least in-flight (shadow.baseline) and report what the policy would have chosen",
        action="store_true",
    )
    option("--share", "share of requests that the policy decides (1)", type=float, metavar="SHARE")
    option("--zone", "zone of this router; replicas of the same zone are preferred")
    option("--debug-headers", "answer with x-warmlane-* headers to everybody", action="store_true")
    option("--drain-s", "longest wait for requests under way at SIGTERM (60)", type=float)
    parser.add_argument(
        "--drain-delay-s",
        help="time between /readyz turning 503 and the listener closing",
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


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. 0: stopped by a signal; 1: cannot listen; ConfigError: bad input."""
    config = config_from(args)
    set_up_logging(args.log_level)
    _raise_file_limit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, args))
    except BindError as error:
        sys.stderr.write(f"warmlane serve: {error}\n")
        return 1
    return 0


def config_from(args: argparse.Namespace) -> Config:
    """Config file with the flags laid over it. ConfigError: bad, or nowhere to route to."""
    given = vars(args)
    path = given.get("config")
    data = with_flags(
        read(path) if path else {},
        replicas=given.get("replica", ()),
        host=given.get("host"),
        port=given.get("port"),
        admin_host=given.get("admin_host"),
        admin_port=given.get("admin_port"),
        policy=given.get("policy"),
        api_key_file=given.get("api_key_file"),
        engine_api_key_file=given.get("engine_api_key_file"),
        tokenizer=given.get("tokenizer"),
        kv_events=given.get("kv_events"),
    )
    data = with_inference_pool(
        data, given.get("pool_name"), given.get("pool_namespace"), given.get("kubeconfig")
    )
    for name in ("zone", "debug_headers"):
        if name in given:
            data[name] = given[name]
    if "drain_s" in given:
        data["timeouts"] = {**(data.get("timeouts") or {}), "drain_s": given["drain_s"]}
    watch = {"mode": "shadow"} if "shadow" in given else {}
    watch.update({"share": given["share"]} if "share" in given else {})
    if watch:
        data["shadow"] = {**(data.get("shadow") or {}), **watch}
    if args.drain_delay_s < 0:
        raise ConfigError(f"--drain-delay-s: {args.drain_delay_s:g}: must not be negative")
    config = from_data(data, where=str(path) if path else "options")
    first = config.pools[0]
    if not path and not first.replicas and first.discovery.kubernetes is None:
        raise ConfigError(
            "no replica to route to: give --replica URL, --pool-name NAME or --config FILE"
        )
    return config


def _raise_file_limit() -> None:
    """As many open sockets as the system allows without asking: the usual 1,024 are soon used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.debug("event=file_limit before=%d now=%d", soft, wanted)


async def _serve(config: Config, args: argparse.Namespace) -> None:
    server = await start(config, lambda: config_from(args))
    gc.collect()
    gc.freeze()  # modules and config live as long as the process
    gc.set_threshold(*_COLLECT_EVERY)
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[str] = asyncio.Queue()
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        loop.add_signal_handler(getattr(signal, name), signals.put_nowait, name)
    sys.stdout.write(banner(server))
    sys.stdout.flush()
    try:
        while await signals.get() == "SIGHUP":
            _reload(server, args)
        log.info("event=draining inflight=%d", server.proxy.inflight)
        whole = await _drain_or_cut(server, args.drain_delay_s, signals)
        log.info("event=stopped how=%s", "drained" if whole else "cut")
    finally:
        await server.close()


async def _drain_or_cut(server: Server, delay_s: float, signals: asyncio.Queue[str]) -> bool:
    """Drain until all requests ended (True), the time is over or a second signal came (False)."""
    timeout_s = server.running.config.timeouts.drain_s
    drain = asyncio.ensure_future(server.drain(delay_s, timeout_s))
    while not drain.done():
        again = asyncio.ensure_future(signals.get())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        if again.done() and again.result() != "SIGHUP":
            drain.cancel()
            break
        again.cancel()
    await asyncio.wait({drain})
    return not drain.cancelled() and drain.result()


def _reload(server: Server, args: argparse.Namespace) -> None:
    server.proxy.reload_files()
    try:
        config = config_from(args)
    except ConfigError as error:
        server.running.metrics.reloaded("failed")
        log.error('event=reload result=failed why="%s"', error)
        return
    try:
        server.running.reload(config)
    except ConfigError:
        return  # Running.reload has counted and logged it


def banner(server: Server) -> str:
    """What the operator sees at start: addresses, and what to try."""
    pools = server.router.pools.values()
    replicas = [replica for pool in pools for replica in pool]
    names = ", ".join(replica.endpoint for replica in replicas[:8])
    names += f" and {len(replicas) - 8} more" if len(replicas) > 8 else ""
    key = "-H 'Authorization: Bearer KEY' " if server.running.config.listen.api_key_file else ""
    insecure = "-k " if server.url.startswith("https") else ""
    return (
        f"warmlane {__version__} listens on {server.url}\n"
        f"  admin and metrics on {server.admin_url}\n"
        f"  replicas ({len(replicas)}): {names or 'none yet'}\n"
        f"try\n"
        f"  curl {insecure}{key}{server.url}/v1/models\n"
        f"  curl {server.admin_url}/admin/v1/replicas\n"
    )


class _KeyValue(logging.Formatter):
    """One line a record: time, level, and the message, which is key=value itself."""

    def format(self, record: logging.LogRecord) -> str:
        moment = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"time={moment}.{int(record.msecs):03d} level={record.levelname.lower()} {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up_logging(level: str) -> None:
    """Everything under the name "warmlane" goes to stderr; other libraries speak from WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(_KeyValue())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("warmlane").setLevel(level.upper())


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


__all__ = ["BindError", "Server", "add_arguments", "config_from", "run", "start"]
