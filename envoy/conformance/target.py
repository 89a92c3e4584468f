"""What is tested: the picker's address and what its operator says about it. Frozen values only."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final, Literal

import msgspec

from warmlane.router.errors import ConfigError


class BodyMode(IntEnum):
    """ProcessingMode.BodySendMode of Envoy's ext_proc."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4


MODES: Final[Mapping[str, BodyMode]] = {
    "full-duplex": BodyMode.FULL_DUPLEX_STREAMED,
    "buffered": BodyMode.BUFFERED,
    "buffered-partial": BodyMode.BUFFERED_PARTIAL,
    "streamed": BodyMode.STREAMED,
    "none": BodyMode.NONE,
}
# Behaviours that the protocol leaves open. A case that needs one runs when --expect names it.
FEATURES: Final[Mapping[str, str]] = {
    "single": "answers name one endpoint, not a list (ORIGINAL_DST clusters honour one)",
    "strip": "system-owned request headers are removed before the request goes upstream",
    "content-length": "the content-length header is set to the outgoing body's size",
    "rewrite": "x-llm-d-model-name-rewrite and its older name force the target model",
    "model-required": "a body whose model is missing or no string is refused with 400",
    "unknown-model": "a model that no pool serves is refused with 404",
    "strict-paths": "a path that no parser knows is refused with 400 or 404",
    "passthrough": "bodies that are not JSON, on paths of their own, are routed by load",
    "empty-body": "a POST with an empty body on an inference path is refused with 400",
    "drop-reason": "a refusal carries x-llm-d-request-dropped-reason",
    "openai-errors": "a refusal's body is an OpenAI error object",
    "retry-after": "a 429 or 503 carries retry-after",
    "subset-ports": "a subset entry names one port, not every port of that address",
    "subset-string": "a subset may also be one comma-separated string",
    "spread": "a burst of unrelated prompts does not herd onto one endpoint",
    "prefix": "a long prompt that repeats goes where it went before",
    "observability": "in observability mode nothing is answered",
    "test-headers": "test-epp-endpoint-selection and x-conformance-test-served-endpoint",
    "scores": "dynamic metadata x-gateway-destination-endpoint-scores",
    "cost": "dynamic metadata x-gateway-inference-request-cost at the end of a response",
    "session-token": "an x-session-token of a response brings the next request to that endpoint",
    "conditional-decode": "`Prefer: if-available` without a cached prefix is refused with 412",
    "trace": "W3C trace context goes upstream unbroken",
    "buffered": "request body mode BUFFERED",
    "buffered-partial": "request body mode BUFFERED_PARTIAL",
    "streamed": "request body mode STREAMED, routed by headers",
    "none": "request body mode NONE, routed by headers",
    "responses-api": "POST /v1/responses",
    "messages-api": "POST /v1/messages",
    "embeddings": "POST /v1/embeddings",
    "rename": "the response names the model that the client asked for",
    "kv-usage": "at equal queues the engine with less KV in use is chosen",
    "shed": "a sheddable request is refused with 429 while every engine is saturated",
    "lora-affinity": "an engine that has the adapter outranks one with less KV in use",
    "evict": "a sheddable request under way is cut with 429 to make room",
    "dead": "an engine that answers no more is left out",
}

Phase = Literal["full", "headers", "none"]
Tls = Literal["none", "skip", "verify"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A picker and what is known about it."""

    host: str
    port: int
    tls: Tls = "skip"
    ca: str = ""
    server_name: str = ""
    health: tuple[str, int] | None = None
    endpoints: tuple[str, ...] = ()
    model: str = ""
    alias: str = ""
    aliased: tuple[str, ...] = ()
    adapter: str = ""
    sheddable: str = ""
    body_mode: BodyMode = BodyMode.FULL_DUPLEX_STREAMED
    phase: Phase = "full"
    expect: frozenset[str] = frozenset()
    timeout_s: float = 5.0
    settle_s: float = 3.0
    large_bytes: int = 1_000_000
    resets: int = 1_200
    serve: bool = False
    terminate: int = 0

    @property
    def stranger(self) -> str:
        """An endpoint that is surely not in the pool (TEST-NET-3, RFC 5737)."""
        return "203.0.113.99:8000"


def features(words: Iterable[str]) -> frozenset[str]:
    """--expect: names, comma-separated, or `all`. ConfigError names an unknown one."""
    chosen: set[str] = set()
    for word in (item.strip() for text in words for item in text.split(",")):
        if word == "all":
            chosen |= set(FEATURES)
        elif word.startswith("-") and word[1:] in FEATURES:
            chosen.discard(word[1:])
        elif word in FEATURES:
            chosen.add(word)
        elif word:
            raise ConfigError(f"--expect {word}: no such feature (see --list)")
    return frozenset(chosen)


def address(text: str, field: str) -> tuple[str, int]:
    """HOST:PORT or [V6]:PORT. ConfigError names the field."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{field}: expected HOST:PORT: {text!r}")
    return host, int(port)


def is_endpoint(text: str) -> bool:
    """An `ip:port` as the protocol writes it, IPv6 in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        return False
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
