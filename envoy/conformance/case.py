"""A case: an id, where the rule is written, what it needs, and the function that tries it.

A case function gets a `Probe` and returns when the picker did as told; `Probe.expect` and
`Probe.fail` end it otherwise. It sees the picker through gRPC alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import msgspec

from warmlane.envoy.conformance.client import Client, End, Stream
from warmlane.envoy.conformance.engines import ServedEngines
from warmlane.envoy.conformance.exchange import DESTINATION, SPACE, Exchange, Request, pieces
from warmlane.envoy.conformance.target import BodyMode, Target, is_endpoint
from warmlane.envoy.conformance.tunnel import Tunnel


class Failed(Exception):
    """The picker did not do what the case expects."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came: {came}")
        self.expected = expected
        self.came = came


class Skipped(Exception):
    """The case cannot be tried here; the message says why."""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What must be known or agreed before a case makes sense."""

    feature: str = ""
    endpoints: int = 0
    duplex: bool = False
    body: bool = False
    phase: str = ""
    serve: bool = False
    option: str = ""

    def missing(self, target: Target) -> str:
        """Why the case is skipped; "" when it is not."""
        if self.feature and self.feature not in target.expect:
            return f"not expected (--expect {self.feature})"
        if self.endpoints > len(target.endpoints):
            return f"needs {self.endpoints} --endpoint, has {len(target.endpoints)}"
        if self.duplex and target.body_mode is not BodyMode.FULL_DUPLEX_STREAMED:
            return "only in body mode full-duplex"
        if self.body and target.body_mode in (BodyMode.NONE, BodyMode.STREAMED):
            return "the picker does not see the body before it answers in this body mode"
        if self.phase and target.phase != self.phase and target.phase != "full":
            return f"response phase is {target.phase}"
        if self.serve and not target.serve:
            return "needs control of the engines (--serve)"
        if self.option and not getattr(target, self.option):
            return f"needs --{self.option.replace('_', '-')}"
        return ""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One rule and how it is tried. source: where the rule is written."""

    id: str
    title: str
    source: str
    run: Callable[[Probe], Awaitable[None]]
    needs: Needs
    limit_s: float = 60.0


def case(
    name: str, source: str, title: str, *, limit_s: float = 60.0, **needs: Any
) -> Callable[[Callable[[Probe], Awaitable[None]]], Case]:
    """Make a Case of a function; `needs` are the fields of Needs."""

    def make(run: Callable[[Probe], Awaitable[None]]) -> Case:
        return Case(
            id=name, title=title, source=source, run=run, needs=Needs(**needs), limit_s=limit_s
        )

    return make


class Probe:
    """What a case works with: the target, streams to it, and the ways to fail."""

    def __init__(
        self, target: Target, client: Client, health: Client, tunnel: Tunnel, engines: ServedEngines
    ) -> None:
        self.target = target
        self.client = client
        self.health = health
        self.tunnel = tunnel
        self.engines = engines
        self.exchanges: list[Exchange] = []
        self.notes: list[str] = []

    @property
    def needs_headers_only(self) -> bool:
        """The picker decides before it sees a body (modes NONE and STREAMED)."""
        return self.target.body_mode in (BodyMode.NONE, BodyMode.STREAMED)

    # Streams

    def open(self, mode: BodyMode | None = None, stream: Stream | None = None) -> Exchange:
        target = self.target
        exchange = Exchange(
            stream or self.client.stream(),
            target.body_mode if mode is None else mode,
            target.phase,
            target.timeout_s,
        )
        self.exchanges.append(exchange)
        return exchange

    async def ask(self, request: Request | None = None, **changes: Any) -> Exchange:
        """One request phase with a small chat body, or what `changes` (fields of Request) say."""
        if request is None:
            changes.setdefault("chunks", (self.chat("Hello."),))
            request = Request(**changes)
        return await self.open(request.mode).request(request)

    async def routed(self, request: Request | None = None, **changes: Any) -> Exchange:
        """`ask`, and it must have been routed within the protocol."""
        exchange = await self.ask(request, **changes)
        self.must_route(exchange)
        return exchange

    async def close(self) -> None:
        for exchange in self.exchanges:
            await exchange.stream.reset()

    # Bodies

    def chat(self, text: str, **fields: Any) -> bytes:
        """A chat completion body for the target's model."""
        body = {
            "model": self.target.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 16,
        }
        return json.dumps(body | fields).encode()

    def completion(self, text: str, **fields: Any) -> bytes:
        """A text completion body for the target's model."""
        body = {"model": self.target.model, "prompt": text, "max_tokens": 16}
        return json.dumps(body | fields).encode()

    def large(self, size: int) -> bytes:
        """A chat body of about `size` bytes that no compressor and no repetition makes small."""
        words = " ".join(f"w{index * 2_654_435_761 % 1_000_003}" for index in range(size // 8))
        return self.chat(words)

    # Judging

    def fail(self, expected: str, came: str) -> NoReturn:
        raise Failed(expected, came)

    def skip(self, why: str) -> NoReturn:
        raise Skipped(why)

    def expect(self, right: bool, expected: str, came: object) -> None:
        if not right:
            raise Failed(expected, str(came))

    def must_follow(self, exchange: Exchange) -> None:
        """Nothing that Envoy would reject, and nothing that it still waits for."""
        if exchange.broken:
            self.fail("replies that Envoy accepts", "; ".join(exchange.broken[:4]))
        if exchange.stalled:
            self.fail(
                f"{exchange.stalled} within {exchange.timeout_s:g} s",
                exchange.log[-1] if exchange.replies else "nothing",
            )
        end = exchange.end
        if end is not None and end.code and exchange.immediate is None:
            self.fail("no gRPC error", f"grpc-status {end.code} {end.message}".strip())

    def must_route(self, exchange: Exchange) -> list[str]:
        """An endpoint was given, lawfully. Returns the list in order."""
        if exchange.immediate is not None:
            self.fail("a routed request", f"immediate response {refusal(exchange)}")
        self.must_follow(exchange)
        if exchange.end is not None and exchange.destination is None:
            self.fail("a routed request", "the stream was closed without an endpoint")
        value = exchange.destination
        if not value:
            self.fail(f"header {DESTINATION}", "no such header in any answer")
        endpoints = [item.strip() for item in value.split(",")]
        for endpoint in endpoints:
            self.expect(is_endpoint(endpoint), "ip:port, or a comma-separated list", repr(value))
        return endpoints

    def must_refuse(self, exchange: Exchange, *statuses: int) -> None:
        """An ImmediateResponse with one of these statuses, and no endpoint."""
        wanted = "immediate response " + " or ".join(map(str, statuses))
        if exchange.immediate is None:
            if exchange.destination is not None:
                self.fail(wanted, f"routed to {exchange.destination}")
            if exchange.end is not None:
                self.fail(wanted, f"grpc-status {exchange.end.code} {exchange.end.message}".strip())
            self.fail(wanted, exchange.stalled or "no immediate response")
        self.expect(exchange.immediate.status in statuses, wanted, refusal(exchange))
        if exchange.broken:
            self.fail("replies that Envoy accepts", "; ".join(exchange.broken[:4]))

    def must_forward(self, exchange: Exchange, body: bytes) -> None:
        """The request body as it would go upstream is this one, whole and unchanged."""
        self.expect(
            bytes(exchange.up.body) == body,
            f"the request body unchanged ({len(body)} bytes)",
            difference(body, bytes(exchange.up.body)),
        )


def refusal(exchange: Exchange) -> str:
    """An immediate response in short."""
    reply = exchange.immediate
    if reply is None:
        return "none"
    return f"{reply.status} {(reply.body or b'')[:160].decode('utf-8', 'replace')}".strip()


def difference(wanted: bytes, got: bytes) -> str:
    """Where two bodies differ first."""
    at = next(
        (index for index, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b),
        min(len(wanted), len(got)),
    )
    return (
        f"{len(got)} bytes, different from byte {at} on: {got[at : at + 32]!r} in place of "
        f"{wanted[at : at + 32]!r}"
    )


def metadata_destination(exchange: Exchange) -> object:
    """The endpoint in the dynamic metadata; None when there is none."""
    space = exchange.metadata.get(SPACE)
    return space.get(DESTINATION) if isinstance(space, dict) else None


async def all_of(jobs: Sequence[Awaitable[Exchange]]) -> list[Exchange]:
    """Exchanges side by side, on one connection."""
    return list(await asyncio.gather(*jobs))


__all__ = [
    "Case",
    "End",
    "Failed",
    "Needs",
    "Probe",
    "Skipped",
    "all_of",
    "case",
    "difference",
    "metadata_destination",
    "pieces",
    "refusal",
]
