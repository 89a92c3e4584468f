"""Where a replica's KV events are to be had: the `kv_events` field of pools and replicas. Floor 2.

    off                         no events: hits come from what was sent
    auto                        ask the engine (`GET /kv_event_sources`)
    EVENTS                      ZMQ endpoint of its publisher, as tcp://10.0.0.5:5557
    EVENTS,REPLAY               and of its replay socket
    http://HOST:PORT/kv_cache_events    events of TensorRT-LLM without a stream of them, polled

`{host}` stands for the host of the replica's URL. tcp ports grow by the replica's data-parallel
rank, as the engines' do. An endpoint with `*` is bound here, for engines that connect; any other
is connected to.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

from warmlane.router.errors import ConfigError
from warmlane.router.types import ReplicaSpec

_TCP: Final = re.compile(r"tcp://(?P<host>\*|\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(?P<port>\d{1,5})")
_POLLED: Final = re.compile(r"https?://[^\s,/]+/kv_cache_events")


class Endpoints(msgspec.Struct, frozen=True):
    """One publisher. replay: "" when it has no replay socket, or none is known."""

    events: str
    replay: str = ""


def check_events(text: str, where: str) -> None:
    """ConfigError unless `text` is off, auto, or one or two endpoints."""
    if text in ("off", "auto"):
        return
    parts = text.replace("{host}", "host").split(",")
    if is_polled(text) and _POLLED.fullmatch(parts[0]) and len(parts) == 1:
        return
    if len(parts) > 2 or not all(map(_is_endpoint, parts)):
        raise ConfigError(
            f"{where}: {text!r}: must be off, auto, or ENDPOINT[,REPLAY] such as tcp://{{host}}:5557"
        )


def endpoints(text: str, spec: ReplicaSpec) -> Endpoints:
    """The endpoints of one replica; `text` is neither off nor auto and was checked."""
    host = urlsplit(spec.url).hostname or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    parts = [at_rank(part.replace("{host}", host), spec.rank or 0) for part in text.split(",")]
    return Endpoints(*parts)


def at_rank(endpoint: str, rank: int) -> str:
    """The endpoint of a data-parallel rank: tcp ports count up, ipc names get TensorRT-LLM's suffix
    (vLLM refuses them)."""
    if not rank:
        return endpoint
    if endpoint.startswith("ipc://"):
        return f"{endpoint}_dp{rank}"
    head, _, port = endpoint.rpartition(":")
    return f"{head}:{int(port) + rank}" if head.startswith("tcp://") else endpoint


def is_open(endpoint: str) -> bool:
    """It names no host of its own: whoever uses it binds (vLLM's rule for publishers)."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith("ipc://")


def is_polled(endpoint: str) -> bool:
    """It is asked for events by HTTP."""
    return endpoint.startswith(("http://", "https://"))


def _is_endpoint(text: str) -> bool:
    found = _TCP.fullmatch(text)
    if found is not None:
        return 0 < int(found["port"]) <= 65_535
    return len(text) > 6 and text.startswith("ipc://")
