"""The gRPC health service by itself: names, states, watchers, bad requests."""

from __future__ import annotations

import pytest

from warmlane.envoy.health import LIVENESS, NAMES, SERVICE, Check, Health, Serving, Watch
from warmlane.envoy.proto.messages import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListResponse,
)


def ask(health: Health, name: str) -> int:
    call = health.methods()["/grpc.health.v1.Health/Check"](lambda: None)
    call.receive(HealthCheckRequest(service=name).SerializeToString())
    assert call.status == (0, "")
    (answer,) = call.take()
    call.closed()
    status: int = HealthCheckResponse.FromString(answer).status
    return status


@pytest.mark.parametrize("name", ["", "liveness", "readiness", SERVICE])
def test_the_names_that_gateways_and_kubelets_ask_for(name: str) -> None:
    health = Health()
    assert ask(health, name) == Serving.SERVING
    health.set(draining=True)
    assert ask(health, name) == Serving.NOT_SERVING


def test_a_stand_by_lives_but_is_not_ready() -> None:
    health = Health()
    health.set(standby=True)
    assert {ask(health, name) for name in NAMES if name != LIVENESS} == {Serving.NOT_SERVING}
    assert ask(health, LIVENESS) == Serving.SERVING
    health.set(standby=False)
    assert ask(health, SERVICE) == Serving.SERVING


def test_a_stranger_is_unknown() -> None:
    assert ask(Health(), "nobody") == Serving.SERVICE_UNKNOWN


def test_all_in_one_list() -> None:
    call = Health().methods()["/grpc.health.v1.Health/List"](lambda: None)
    call.receive(b"")
    (answer,) = call.take()
    statuses = HealthListResponse.FromString(answer).statuses
    assert {name: each.status for name, each in statuses.items()} == dict.fromkeys(NAMES, 1)


def test_a_watcher_hears_changes_and_nothing_else() -> None:
    health, woken = Health(), []
    watch = Watch(health, lambda: woken.append(1))
    watch.receive(HealthCheckRequest(service=SERVICE).SerializeToString())
    assert watch.take() == [b"\x08\x01"]
    watch.half_closed()
    health.set(draining=False)
    assert watch.take() == [] and not woken
    health.set(draining=True)
    assert watch.take() == [b"\x08\x02"] and woken == [1]
    watch.closed()
    health.set(draining=False)
    assert watch.take() == [] and woken == [1]
    assert watch.status is None


def test_a_watcher_of_a_stranger_waits() -> None:
    watch = Watch(Health(), lambda: None)
    watch.receive(HealthCheckRequest(service="nobody").SerializeToString())
    assert watch.take() == [b"\x08\x03"]
    assert watch.status is None


LONG = b"\x0a\x80\x01" + b"a" * 128


@pytest.mark.parametrize("message", [b"\x0a", b"\x0a\x05ab", b"\xff\xff", LONG])
def test_what_is_no_request_is_refused(message: bytes) -> None:
    health = Health()
    for path in ("Check", "Watch"):
        call = health.methods()[f"/grpc.health.v1.Health/{path}"](lambda: None)
        call.receive(message)
        assert call.status is not None and call.status[0] == 3
        assert call.take() == []
        call.closed()


def test_a_call_without_a_message_is_refused() -> None:
    call = Check(lambda message: message)
    call.half_closed()
    assert call.status is not None and call.status[0] == 3
