"""Random ProcessingRequests by the protobuf library: what gateways send, and odder ones."""

from __future__ import annotations

import random
from typing import Any

from warmlane.envoy.proto import messages

NAMES = (
    *(":method", ":path", ":status", ":authority", "content-type", "content-length", "accept"),
    *("content-encoding", "x-session-id", "x-gateway-inference-objective", "x-llm-d-slo-ttft-ms"),
    *("x-warmlane-subset", "x-data-parallel-rank", "x-prefiller-host-port", "x-request-id"),
    *("test-epp-endpoint-selection", "x-data-parallel-ranks", "x-gateway", "t", "x", "c", ":", ""),
)
VALUES = ("POST", "GET", "/v1/chat/completions?x=1", "200", "503", "application/json", "", "é", "a")
ENDPOINTS = ("10.0.0.1:8000", "[::1]:80", " 10.0.0.2:1 , 10.0.0.3:2", "", ",", "10.0.0.9")


def head(rng: random.Random, into: Any) -> None:
    for _ in range(rng.randint(0, 12)):
        header = into.headers.add()
        header.key = rng.choice(NAMES)
        if rng.random() < 0.2:
            header.value = rng.choice(VALUES)
        else:
            header.raw_value = rng.choice(VALUES).encode()


def request(rng: random.Random) -> Any:
    """A ProcessingRequest message object."""
    made = messages.ProcessingRequest()
    kind = rng.randint(1, 7)
    if kind in (2, 3):
        part = made.request_headers if kind == 2 else made.response_headers
        part.SetInParent()
        head(rng, part.headers)
        part.end_of_stream = rng.random() < 0.3
    elif kind in (4, 5):
        body = made.request_body if kind == 4 else made.response_body
        body.SetInParent()
        body.body = rng.randbytes(rng.choice((0, 1, 100, 127, 128, 5000)))
        body.end_of_stream = rng.random() < 0.5
    elif kind in (6, 7):
        trailers = made.request_trailers if kind == 6 else made.response_trailers
        trailers.SetInParent()
        head(rng, trailers.trailers)
    _metadata(rng, made)
    made.observability_mode = rng.random() < 0.2
    if rng.random() < 0.5:
        made.protocol_config.SetInParent()
        made.protocol_config.request_body_mode = rng.randint(0, 5)
        made.protocol_config.response_body_mode = rng.randint(0, 5)
        made.protocol_config.send_body_without_waiting_for_header_response = rng.random() < 0.5
    return made


def _metadata(rng: random.Random, made: Any) -> None:
    space = made.metadata_context.filter_metadata
    if rng.random() < 0.5:
        hint: Any = rng.choice(ENDPOINTS)
        if rng.random() < 0.7:
            hint = [rng.choice((*ENDPOINTS, 7, None)) for _ in range(rng.randint(0, 4))]
        space["envoy.lb.subset_hint"].update({"x-gateway-destination-endpoint-subset": hint})
    if rng.random() < 0.3:
        key = "x-gateway-destination-endpoint-served"
        space["envoy.lb"].update({key: rng.choice(ENDPOINTS), "other": {"deep": [1, 2]}})
    if rng.random() < 0.3:
        attributes = made.attributes["envoy.filters.http.ext_proc"]
        attributes.update({"upstream.address": rng.choice(ENDPOINTS), "a": 1})
