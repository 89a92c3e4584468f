"""What `serve` and `ext-proc` have in common as commands: options, signals, the way down. Floor 8.

    SIGHUP           reads config file, keys and certificates again; at any time, also in a drain
    SIGTERM, SIGINT  drains: not ready at once, after --drain-delay-s nothing new, what is under way
                     ends, at most --drain-s; a second signal cuts it

A command adds its own options, says where its flags go in the config, and brings a `Face`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import uvloop

from warmlane.router.build import Running
from warmlane.router.config import Config
from warmlane.router.config_kube import with_inference_pool
from warmlane.router.config_load import from_data, read, with_flags
from warmlane.router.errors import ConfigError

log = logging.getLogger("warmlane")

_POLICIES: Final = "default, round-robin, least-requests, random, or the name of one scorer"
_SHARING: Final = {"share_url": "url", "routers": "routers"}
_SHOWN: Final = 8  # replicas that a banner names


class BindError(Exception):
    """An address cannot be listened on; the message is one line for the operator."""


class Binding:
    """Turns the OSError of a bind into a BindError that names the address."""

    def __init__(self, host: str, port: int) -> None:
        self._address = f"{bracketed(host)}:{port}"

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise BindError(f"cannot listen on {self._address}: {why}") from error


class Face(Protocol):
    """A started face, as its command sees it."""

    running: Running

    @property
    def under_way(self) -> int:
        """Requests that a drain waits for."""
        ...

    def reload_files(self) -> None:
        """Take changed certificates into use; a bad one is reported and ignored."""

    async def drain(self, delay_s: float = 0.0, timeout_s: float | None = None) -> bool:
        """Not ready at once; after `delay_s` nothing new. True: all that was under way ended."""
        ...

    async def close(self) -> None:
        """Cut what is still under way and free everything."""


# Options ------------------------------------------------------------------------------------------


def adder(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """`option(*names, text=..., ...)`: an option that leaves the config's value when not given."""

    def option(*names: str, text: str, **more: Any) -> None:
        parser.add_argument(*names, help=text, default=argparse.SUPPRESS, **more)

    return option


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Options of both commands: which replicas, and how one is chosen."""
    option = adder(parser)
    option(
        "--replica",
        text="a replica to choose from, http(s)://host:port; repeat for more",
        action="append",
        metavar="URL",
    )
    option("--config", text="YAML or JSON file (see warmlane check-config)", metavar="FILE")
    option("--pool-name", text="an InferencePool to take replicas from", metavar="NAME")
    option("--pool-namespace", text="its namespace (that of this process)", metavar="NAME")
    option("--kubeconfig", text="how to reach Kubernetes from outside a cluster", metavar="FILE")
    option("--policy", text=f"how a replica is chosen: {_POLICIES}", metavar="NAME")
    option(
        "--engine-api-key-file", text="key for probes and scrapes of the replicas", metavar="FILE"
    )
    option(
        "--kv-events",
        text="events of the engines' KV caches: off, auto (ask the engines) or EVENTS[,REPLAY]",
        metavar="ENDPOINT",
    )
    option(
        "--tokenizer",
        text="token ids for exact matching: off, engine, or the folder of the model's tokenizer",
        metavar="PATH",
    )
    option("--zone", text="zone of this process; replicas of the same zone are preferred")


def add_running(parser: argparse.ArgumentParser, *, watches: str, share: str) -> None:
    """Options of both commands: comparing decisions, the way down, the log.

    watches, share: what --shadow and --share do in this one.
    """
    option = adder(parser)
    option("--shadow", text=watches, action="store_true")
    option("--share", text=share, type=float, metavar="SHARE")
    option("--share-url", text="Valkey or Redis by which routers hear each other", metavar="URL")
    option("--routers", text="how many serve these replicas (1)", type=int, metavar="M")
    option("--record", text="log requests without their text, for replay", metavar="FILE")
    option("--drain-s", text="longest wait for what is under way at SIGTERM (60)", type=float)
    parser.add_argument(
        "--drain-delay-s",
        help="time between not being ready and taking nothing new",
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


def config_data(given: dict[str, Any], *, admin: str, follow_pool: bool = True) -> dict[str, Any]:
    """Data of the config file with the common flags laid over it. ConfigError.

    admin: the word of the admin flags, as in --admin-port. follow_pool: --pool-name is an
    InferencePool to follow, and no mere name.
    """
    path = given.get("config")
    data = with_flags(
        read(path) if path else {},
        replicas=given.get("replica", ()),
        admin_host=given.get(f"{admin}_host"),
        admin_port=given.get(f"{admin}_port"),
        policy=given.get("policy"),
        engine_api_key_file=given.get("engine_api_key_file"),
        tokenizer=given.get("tokenizer"),
        kv_events=given.get("kv_events"),
    )
    if follow_pool:
        data = with_inference_pool(
            data, given.get("pool_name"), given.get("pool_namespace"), given.get("kubeconfig")
        )
    if "zone" in given:
        data["zone"] = given["zone"]
    if "drain_s" in given:
        data["timeouts"] = {**(data.get("timeouts") or {}), "drain_s": given["drain_s"]}
    sharing = {name: given[flag] for flag, name in _SHARING.items() if flag in given}
    if sharing:
        data["share"] = {**(data.get("share") or {}), **sharing}
    if "record" in given:
        data["record"] = {**(data.get("record") or {}), "file": given["record"]}
    watch = {"mode": "shadow"} if "shadow" in given else {}
    watch.update({"share": given["share"]} if "share" in given else {})
    if watch:
        data["shadow"] = {**(data.get("shadow") or {}), **watch}
    if given["drain_delay_s"] < 0:
        raise ConfigError(f"--drain-delay-s: {given['drain_delay_s']:g}: must not be negative")
    return data


def config_of(data: dict[str, Any], given: dict[str, Any]) -> Config:
    """The checked tree of `config_data`. ConfigError: bad, or nowhere to route to."""
    path = given.get("config")
    config = from_data(data, where=str(path) if path else "options")
    first = config.pools[0]
    if not path and not first.replicas and first.discovery.kubernetes is None:
        raise ConfigError(
            "no replica to route to: give --replica URL, --pool-name NAME or --config FILE"
        )
    return config


# Running ------------------------------------------------------------------------------------------


class Loop(uvloop.Loop):
    """Reads literal addresses itself. The resolver's threads come with its first question and stay
    for ever, and in a process of one thread each call on a socket costs the kernel less."""

    async def getaddrinfo(
        self,
        host: str | bytes | None,
        port: str | bytes | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - its name in asyncio
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As asyncio's, which `sock_connect` asks even for an address."""
        literal = flags | socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        try:
            return socket.getaddrinfo(host, port, family, type, proto, literal)
        except socket.gaierror:
            return await super().getaddrinfo(
                host, port, family=family, type=type, proto=proto, flags=flags
            )


def run(name: str, level: str, serving: Callable[[], Awaitable[None]]) -> int:
    """Serve until a signal. 0: stopped by one; 1: cannot listen; ConfigError: bad input."""

    async def main() -> None:
        await serving()

    set_up_logging(level)
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(main())
    except BindError as error:
        sys.stderr.write(f"warmlane {name}: {error}\n")
        return 1
    return 0


async def until_signal(
    face: Face,
    banner: str,
    again: Callable[[], Config],
    delay_s: float,
    collect_every: tuple[int, int, int],
) -> None:
    """Say what runs, follow the signals, and close the face.

    again: the config as it is now. collect_every: thresholds of the collector, since requests
    leave no cycles behind.
    """
    gc.collect()
    gc.freeze()  # modules and config live as long as the process
    gc.set_threshold(*collect_every)
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[str] = asyncio.Queue()
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        loop.add_signal_handler(getattr(signal, name), signals.put_nowait, name)
    sys.stdout.write(banner)
    sys.stdout.flush()
    try:
        while await signals.get() == "SIGHUP":
            _reload(face, again)
        log.info("event=draining inflight=%d", face.under_way)
        whole = await _drain_or_cut(face, delay_s, signals)
        log.info("event=stopped how=%s", "drained" if whole else "cut")
    finally:
        await face.close()


async def _drain_or_cut(face: Face, delay_s: float, signals: asyncio.Queue[str]) -> bool:
    """Drain until all requests ended (True), the time is over or a second signal came (False)."""
    drain = asyncio.ensure_future(face.drain(delay_s))
    while not drain.done():
        again = asyncio.ensure_future(signals.get())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        if again.done() and again.result() != "SIGHUP":
            drain.cancel()
            break
        again.cancel()
    await asyncio.wait({drain})
    return not drain.cancelled() and drain.result()


def _reload(face: Face, again: Callable[[], Config]) -> None:
    face.reload_files()
    try:
        config = again()
    except ConfigError as error:
        face.running.metrics.reloaded("failed")
        log.error('event=reload result=failed why="%s"', error)
        return
    try:
        face.running.reload(config)
    except ConfigError:
        return  # Running.reload has counted and logged it


def replicas_line(running: Running) -> str:
    """The line of a banner that names the replicas known at start."""
    pools = running.router.pools.values()
    replicas = [replica.endpoint for pool in pools for replica in pool]
    names = ", ".join(replicas[:_SHOWN])
    names += f" and {len(replicas) - _SHOWN} more" if len(replicas) > _SHOWN else ""
    return f"  replicas ({len(replicas)}): {names or 'none yet'}\n"


# The log ------------------------------------------------------------------------------------------


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


def bracketed(host: str) -> str:
    """The host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
