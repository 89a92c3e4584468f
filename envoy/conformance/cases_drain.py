"""The picker's own end: SIGTERM while a request is under way (--terminate PID). Runs last."""

from __future__ import annotations

import asyncio
import os
import signal

from warmlane.envoy.conformance.case import Case, End, Probe, case
from warmlane.envoy.conformance.exchange import Response
from warmlane.envoy.conformance.wire import Serving, health_request, health_status

UNAVAILABLE = 14


@case(
    "drain.under-way",
    "EPP protocol, Health Checking; gRPC, GOAWAY",
    "at SIGTERM health turns NOT_SERVING and what is under way ends well",
    option="terminate",
)
async def under_way(probe: Probe) -> None:
    exchange = await probe.routed()
    if exchange.end is not None:
        probe.skip("the picker ends the stream after the request phase")
    os.kill(probe.target.terminate, signal.SIGTERM)
    await _not_serving(probe)
    if probe.target.phase != "none":
        await exchange.respond(Response(chunks=(b'{"choices":[]}',)))
    probe.must_follow(exchange)


async def _not_serving(probe: Probe) -> None:
    """Within the time limit health says NOT_SERVING, or the port takes no more connections."""
    came: object = "no answer"
    for _ in range(20):
        answer = await probe.health.check(health_request("readiness"), probe.target.timeout_s)
        if isinstance(answer, End):
            came = answer
            if answer.code == UNAVAILABLE:
                return
        else:
            came = health_status(answer).name
            if health_status(answer) is Serving.NOT_SERVING:
                return
        await asyncio.sleep(probe.target.timeout_s / 20)
    probe.fail("NOT_SERVING, or UNAVAILABLE", str(came))


CASES: tuple[Case, ...] = (under_way,)
