"""The health service: grpc.health.v1 under the names that gateways and kubelets ask for."""

from __future__ import annotations

from warmlane.envoy.conformance.case import Case, End, Probe, case
from warmlane.envoy.conformance.wire import Serving, health_request, health_status

HEALTH = "EPP protocol, Health Checking"
GRPC = "gRPC health checking protocol"
NOT_FOUND = 5


def _served(name: str, service: str, source: str) -> Case:
    @case(f"health.{name}", source, f"Check of {service!r}: SERVING")
    async def run(probe: Probe) -> None:
        came = await probe.health.check(health_request(service), probe.target.timeout_s)
        if isinstance(came, End):
            probe.fail("SERVING", f"grpc-status {came.code} {came.message}".strip())
        status = health_status(came)
        probe.expect(status is Serving.SERVING, "SERVING", status.name)

    return run


@case("health.unknown", GRPC, "Check of an unknown service: NOT_FOUND or SERVICE_UNKNOWN")
async def unknown(probe: Probe) -> None:
    came = await probe.health.check(health_request("no.such.Service"), probe.target.timeout_s)
    if isinstance(came, End):
        probe.expect(came.code == NOT_FOUND, "grpc-status 5 (NOT_FOUND)", came)
    else:
        status = health_status(came)
        probe.expect(status is Serving.SERVICE_UNKNOWN, "SERVICE_UNKNOWN", status.name)


@case("health.watch", GRPC, "Watch tells the present status at once")
async def watch(probe: Probe) -> None:
    came = await probe.health.watch(health_request(""), probe.target.timeout_s)
    if isinstance(came, End):
        probe.fail("SERVING", f"grpc-status {came.code} {came.message}".strip())
    status = health_status(came)
    probe.expect(status is Serving.SERVING, "SERVING", status.name)


CASES: tuple[Case, ...] = (
    _served("liveness", "liveness", HEALTH),
    _served("readiness", "readiness", HEALTH),
    _served("ext-proc", "envoy.service.ext_proc.v3.ExternalProcessor", HEALTH),
    _served("empty", "", GRPC),
    *(unknown, watch),
)
