"""Choices by the engines' own state; the suite is the engines (--serve)."""

from __future__ import annotations

from warmlane.envoy.conformance.case import Case, Probe, case, refusal
from warmlane.envoy.conformance.engines import EngineState

HERMETIC = "llm-d router, hermetic suite"
ERRORS = "llm-d router, error mapping"
FULL = EngineState(running=256, waiting=200, kv=0.99)
TRIES = 6


async def _all_go_to(probe: Probe, endpoint: str, **fields: str) -> None:
    """Requests that share nothing, one after the other, each cut before the next."""
    for number in range(TRIES):
        exchange = await probe.routed(chunks=(probe.chat(f"{number}{number} hello", **fields),))
        first = probe.must_route(exchange)[0]
        await exchange.stream.reset()
        probe.expect(first == endpoint, f"{endpoint} for request {number + 1}", first)


@case("state.queue", HERMETIC, "the engine with the shorter queue", serve=True, endpoints=2)
async def queue(probe: Probe) -> None:
    endpoints = probe.target.endpoints
    for chosen in endpoints[:2]:
        busy = EngineState(running=40, waiting=40, kv=0.3)
        await probe.engines.set({item: busy for item in endpoints if item != chosen})
        await _all_go_to(probe, chosen)


@case(
    "state.kv",
    HERMETIC,
    "at equal queues the one with more free KV",
    serve=True,
    endpoints=2,
    feature="kv-usage",
)
async def kv(probe: Probe) -> None:
    endpoints = probe.target.endpoints
    for chosen in endpoints[:2]:
        await probe.engines.set(
            {item: EngineState(kv=0.1 if item == chosen else 0.95) for item in endpoints}
        )
        await _all_go_to(probe, chosen)


@case(
    "state.lora",
    HERMETIC,
    "the engine that has the adapter, despite more KV in use",
    serve=True,
    endpoints=2,
    feature="lora-affinity",
    option="adapter",
)
async def lora(probe: Probe) -> None:
    endpoints, name = probe.target.endpoints, probe.target.adapter
    for chosen in endpoints[:2]:
        states = {item: EngineState(kv=0.2) for item in endpoints}
        states[chosen] = EngineState(kv=0.4, adapters=(name,))
        await probe.engines.set(states)
        await _all_go_to(probe, chosen, model=name)


@case(
    "state.not-shed",
    HERMETIC,
    "saturated engines: a request of normal importance is routed, at once or when there is room",
    serve=True,
    endpoints=1,
)
async def not_shed(probe: Probe) -> None:
    await probe.engines.set(dict.fromkeys(probe.target.endpoints, FULL))
    exchange = await probe.ask()
    if exchange.stalled:  # flow control keeps it
        await probe.engines.reset()
        await exchange.resume()
    probe.must_route(exchange)


@case(
    "state.shed",
    ERRORS,
    "saturated engines and a sheddable request: 429 with a reason",
    serve=True,
    endpoints=1,
    feature="shed",
    option="sheddable",
)
async def shed(probe: Probe) -> None:
    await probe.engines.set(dict.fromkeys(probe.target.endpoints, FULL))
    for header in ("x-llm-d-inference-objective", "x-gateway-inference-objective"):
        headers = ((header, probe.target.sheddable),)
        exchange = await probe.ask(headers=headers, chunks=(probe.chat("Later"),))
        probe.must_refuse(exchange, 429)
        assert exchange.immediate is not None
        reason = exchange.immediate.header("x-llm-d-request-dropped-reason")
        if "drop-reason" in probe.target.expect:
            probe.expect(reason == b"rejected-saturated", "rejected-saturated", reason)
        after = exchange.immediate.header("retry-after") or b""
        if "retry-after" in probe.target.expect:
            probe.expect(after.isdigit(), "retry-after: seconds", after)


@case(
    "state.empty",
    "EPP protocol, Destination Endpoint",
    "no engine is ready: 503",
    serve=True,
    endpoints=1,
)
async def empty(probe: Probe) -> None:
    await probe.engines.set(dict.fromkeys(probe.target.endpoints, EngineState(up=False)))
    probe.must_refuse(await probe.ask(), 503)
    exchange = await probe.ask(method="GET", path="/v1/models", chunks=())
    probe.must_refuse(exchange, 503, 500)
    await probe.engines.reset()
    await probe.routed()


@case(
    "state.dead",
    "EPP protocol, Destination Endpoint",
    "an engine that answers no more is left out",
    serve=True,
    endpoints=2,
    feature="dead",
)
async def dead(probe: Probe) -> None:
    first, *others = probe.target.endpoints
    await probe.engines.set({first: EngineState(up=False)})
    for number in range(TRIES):
        exchange = await probe.routed(chunks=(probe.chat(f"{number} still there?"),))
        chosen = probe.must_route(exchange)
        await exchange.stream.reset()
        probe.expect(first not in chosen, "one of " + ", ".join(others), chosen)


@case(
    "state.evict",
    HERMETIC,
    "a sheddable request under way is cut with 429 when engines fill up",
    serve=True,
    endpoints=1,
    feature="evict",
    option="sheddable",
)
async def evict(probe: Probe) -> None:
    headers = (("x-llm-d-inference-objective", probe.target.sheddable),)
    first = await probe.routed(headers=headers, chunks=(probe.chat("I can wait."),))
    await probe.engines.set(dict.fromkeys(probe.target.endpoints, FULL))
    await probe.routed(chunks=(probe.chat("I cannot."),))
    await first.linger(probe.target.timeout_s)
    probe.expect(first.immediate is not None, "immediate response 429", first.log[-1])
    assert first.immediate is not None
    probe.expect(first.immediate.status == 429, "429", refusal(first))


CASES: tuple[Case, ...] = (*(queue, kv, lora, not_shed, shed, empty, dead, evict),)
