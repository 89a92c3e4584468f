"""The list of all cases, and how one run goes: connect, try each case alone, tell how it went."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from warmlane.envoy.conformance import (
    cases_drain,
    cases_error,
    cases_health,
    cases_mode,
    cases_model,
    cases_request,
    cases_response,
    cases_state,
    cases_stream,
    cases_subset,
)
from warmlane.envoy.conformance.case import Case, Failed, Probe, Skipped
from warmlane.envoy.conformance.client import Client
from warmlane.envoy.conformance.engines import ServedEngines
from warmlane.envoy.conformance.target import Target
from warmlane.envoy.conformance.tunnel import Tunnel

CASES: tuple[Case, ...] = (
    *cases_health.CASES,
    *cases_request.CASES,
    *cases_subset.CASES,
    *cases_error.CASES,
    *cases_model.CASES,
    *cases_response.CASES,
    *cases_mode.CASES,
    *cases_state.CASES,
    *cases_stream.CASES,
    *cases_drain.CASES,
)
SENT_LINES = 40


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How one case went. detail: why it was skipped, or what broke in the suite itself.

    transcript: the messages of its last exchange, "> " what was sent, "< " what came.
    """

    id: str
    title: str
    source: str
    verdict: Literal["pass", "fail", "skip"]
    detail: str = ""
    expected: str = ""
    came: str = ""
    transcript: tuple[str, ...] = ()
    seconds: float = 0.0


def chosen(only: Sequence[str], skip: Sequence[str] = ()) -> list[Case]:
    """Cases whose id fits a pattern (`subset.*`) of `only`, or all, less those that fit `skip`."""
    return [
        case
        for case in CASES
        if (not only or any(fnmatchcase(case.id, pattern) for pattern in only))
        and not any(fnmatchcase(case.id, pattern) for pattern in skip)
    ]


async def run_suite(
    target: Target, cases: Sequence[Case], tell: Callable[[Result], None]
) -> list[Result]:
    """Run cases one after the other. OSError when picker or engine address is out of reach."""
    results: list[Result] = []
    async with _connected(target) as (tunnel, health, engines):
        for case in cases:
            why = case.needs.missing(target)
            result = (
                _skipped(case, why) if why else await _try(case, target, tunnel, health, engines)
            )
            results.append(result)
            tell(result)
    return results


@contextlib.asynccontextmanager
async def _connected(target: Target) -> AsyncIterator[tuple[Tunnel, Tunnel, ServedEngines]]:
    engines = ServedEngines(target)
    tunnel = Tunnel(target, target.host, target.port)
    host, port = target.health or (target.host, target.port)
    health = tunnel if target.health is None else Tunnel(target, host, port)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(engines.close)
        await engines.open()
        for relay in dict.fromkeys((tunnel, health)):
            await relay.reach(target.timeout_s)
            await relay.open()
            stack.push_async_callback(relay.close)
        yield tunnel, health, engines


def _skipped(case: Case, why: str) -> Result:
    return Result(id=case.id, title=case.title, source=case.source, verdict="skip", detail=why)


async def _try(
    case: Case, target: Target, tunnel: Tunnel, health: Tunnel, engines: ServedEngines
) -> Result:
    """One case on a channel of its own, so that a broken connection spoils no other case."""
    await engines.reset()
    client, other = Client(tunnel.port), Client(health.port)
    probe = Probe(target, client, other, tunnel, engines)
    verdict: Literal["pass", "fail", "skip"] = "pass"
    detail = expected = came = ""
    start = time.monotonic()
    try:
        await asyncio.wait_for(case.run(probe), case.limit_s)
    except Skipped as skipped:
        verdict, detail = "skip", str(skipped)
    except Failed as failed:
        verdict, expected, came = "fail", failed.expected, failed.came
    except TimeoutError:
        verdict, expected = "fail", f"an end within {case.limit_s:g} s"
        came = probe.exchanges[-1].log[-1] if probe.exchanges and probe.exchanges[-1].log else ""
    finally:
        seconds = time.monotonic() - start
        await probe.close()
        await client.close()
        await other.close()
    lines = [line for exchange in probe.exchanges[-1:] for line in exchange.log]
    if len(lines) > SENT_LINES:
        middle = f"  ... {len(lines) - SENT_LINES} more"
        lines = [*lines[: SENT_LINES // 2], middle, *lines[-SENT_LINES // 2 :]]
    return Result(
        id=case.id,
        title=case.title,
        source=case.source,
        verdict=verdict,
        detail=", ".join([*filter(None, [detail]), *probe.notes]),
        expected=expected,
        came=came,
        transcript=tuple(lines),
        seconds=round(seconds, 3),
    )
