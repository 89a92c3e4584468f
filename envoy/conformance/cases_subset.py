"""The endpoint subset that a gateway may prescribe (EPP protocol, section Endpoint Subset)."""

from __future__ import annotations

from typing import Any

from warmlane.envoy.conformance.case import Case, Probe, case, metadata_destination
from warmlane.envoy.conformance.exchange import SUBSET, SUBSET_SPACE, Exchange

HINT = "EPP protocol, Endpoint Subset"
TRIES = 4  # a picker that ignores the hint is right by chance once in a while


def hint(value: Any) -> dict[str, dict[str, Any]]:
    """Metadata with this subset."""
    return {SUBSET_SPACE: {SUBSET: value}}


async def _only(probe: Probe, value: Any, allowed: set[str], **request: Any) -> None:
    """Each of several requests with this hint goes to one of `allowed`."""
    for number in range(TRIES):
        exchange = await _ask(probe, value, number, **request)
        for endpoint in probe.must_route(exchange):
            probe.expect(endpoint in allowed, "one of " + ", ".join(sorted(allowed)), endpoint)


async def _ask(probe: Probe, value: Any, number: int = 0, **request: Any) -> Exchange:
    request.setdefault("chunks", (probe.chat(f"Subset {number}"),))
    return await probe.ask(metadata=hint(value), **request)


@case("subset.inside", HINT, "the choice is made from the subset alone", endpoints=2)
async def inside(probe: Probe) -> None:
    for endpoint in probe.target.endpoints:
        await _only(probe, [endpoint], {endpoint})


@case("subset.partial", HINT, "entries that are not in the pool are passed over", endpoints=2)
async def partial(probe: Probe) -> None:
    for endpoint in probe.target.endpoints:
        await _only(probe, [probe.target.stranger, endpoint], {endpoint})


@case("subset.get", HINT, "the subset holds for a request without a body too", endpoints=2)
async def get(probe: Probe) -> None:
    for endpoint in probe.target.endpoints:
        await _only(probe, [endpoint], {endpoint}, method="GET", path="/v1/models", chunks=())


@case("subset.none", HINT, "no eligible entry: 503")
async def none(probe: Probe) -> None:
    probe.must_refuse(await _ask(probe, [probe.target.stranger]), 503)


@case("subset.empty", HINT, "an empty list: 503")
async def empty(probe: Probe) -> None:
    probe.must_refuse(await _ask(probe, []), 503)


@case("subset.absent", HINT, "no key: the whole pool, whatever else the metadata holds")
async def absent(probe: Probe) -> None:
    await probe.routed(
        metadata={SUBSET_SPACE: {"other": [probe.target.stranger]}, "x": {SUBSET: []}},
        chunks=(probe.chat("No subset"),),
    )


@case(
    "subset.port",
    HINT,
    "an entry names one port: another port of the same address is not eligible",
    feature="subset-ports",
    endpoints=1,
)
async def port(probe: Probe) -> None:
    taken = {int(item.rpartition(":")[2]) for item in probe.target.endpoints}
    free = next(number for number in range(65_000, 65_535) if number not in taken)
    address = probe.target.endpoints[0].rpartition(":")[0]
    probe.must_refuse(await _ask(probe, [f"{address}:{free}"]), 503)


@case(
    "subset.string",
    "GIE lightweight EPP, subset metadata",
    "the subset may be one comma-separated string",
    feature="subset-string",
    endpoints=2,
)
async def string(probe: Probe) -> None:
    for endpoint in probe.target.endpoints:
        await _only(probe, f"{probe.target.stranger}, {endpoint}", {endpoint})


@case("subset.reason", "llm-d router, errors", "that 503 says why", feature="drop-reason")
async def reason(probe: Probe) -> None:
    exchange = await _ask(probe, [probe.target.stranger])
    probe.must_refuse(exchange, 503)
    assert exchange.immediate is not None
    told = exchange.immediate.header("x-llm-d-request-dropped-reason")
    wanted = b"rejected-no-endpoints"
    probe.expect(told == wanted, f"x-llm-d-request-dropped-reason: {wanted.decode()}", told)


@case("subset.metadata", HINT, "header and metadata stay equal under a subset", endpoints=1)
async def equal(probe: Probe) -> None:
    exchange = await _ask(probe, [probe.target.endpoints[0]])
    probe.must_route(exchange)
    told = metadata_destination(exchange)
    probe.expect(told == exchange.destination, str(exchange.destination), told)


CASES: tuple[Case, ...] = (
    *(inside, partial, get, none, empty, absent, port, string, reason, equal),
)
