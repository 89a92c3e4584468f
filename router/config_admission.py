"""Admission in the configuration tree: what happens to requests past saturation. Floor 2."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

_Seconds = Annotated[float, Meta(gt=0)]
_Count = Annotated[int, Meta(ge=1)]
_Factor = Annotated[float, Meta(gt=0, le=1000)]


def _note(text: str) -> Meta:
    return Meta(description=text)


class Admission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests past saturation: who waits in the router, in which order, how long."""

    enabled: Annotated[bool, _note("false: engines queue whatever comes")] = False
    backlog_s: Annotated[
        _Seconds, _note("prefill ahead of a replica from which it has no room")
    ] = 1.0
    unstarted: Annotated[
        _Count, _note("requests without a first token that a replica may always have")
    ] = 4
    queue_requests: Annotated[_Count, _note("requests that wait, per pool")] = 1024
    queue_bytes: Annotated[_Count, _note("bytes of those requests' bodies")] = 268_435_456
    wait_s: Annotated[_Seconds, _note("longest wait; then 429 with Retry-After")] = 30.0
    room_s: Annotated[
        float, Meta(ge=0, description="longest wait while no replica is ready; 0: none")
    ] = 10.0
    age_s: Annotated[
        _Seconds, _note("wait from which every fourth place goes to the oldest, whoever it is")
    ] = 10.0
    tenant: Annotated[
        Literal["none", "api-key", "header", "user"],
        _note("who shares fairly: API keys, `tenant_headers`, or the body's `user`"),
    ] = "none"
    tenant_headers: Annotated[list[str], _note("the first that a request has names its tenant")] = (
        msgspec.field(
            default_factory=lambda: [
                "x-llm-d-inference-fairness-id",
                "x-gateway-inference-fairness-id",
            ]
        )
    )
    tenants: Annotated[_Count, _note("tenants told apart; further ones share one place")] = 1024
    weights: Annotated[dict[str, _Factor], _note("share of a tenant, by name; others have 1")] = {}
    output_weight: Annotated[
        float, Meta(ge=0, le=100, description="an output token's charge, in uncached prompt tokens")
    ] = 2.0
    trust_priority: Annotated[
        bool,
        _note("a client may raise its own priority; InferenceObjectives always count"),
    ] = False
    shed_negative: Annotated[
        bool, _note("requests of less than normal importance get 429 instead of a place")
    ] = True
    deadline_headers: Annotated[
        list[str], _note("the first names the milliseconds that it may wait")
    ] = msgspec.field(
        default_factory=lambda: ["x-warmlane-deadline-ms", "x-envoy-expected-rq-timeout-ms"]
    )
    working_set: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="new sessions wait while contexts of live ones exceed this share of all KV"
            " caches; 0: never",
        ),
    ] = 1.0
    session_s: Annotated[_Seconds, _note("silence after which a session counts as over")] = 150.0
    sessions: Annotated[_Count, _note("sessions that are remembered per pool")] = 65_536
