"""The compiled course of a stream beside the Python half: which requests take it, that both give
the same bytes, decisions and counts, and that one leads into the other anywhere.
"""

from __future__ import annotations

import random
from array import array
from typing import Any

import pytest

from tests.common import split_mix
from tests.envoy import gateway as envoy
from warmlane._core import expected, leads, proc_gate
from warmlane.envoy.picker import Picker
from warmlane.envoy.session import Session
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.types import ReplicaState

MASK = (1 << 64) - 1
REPLICAS = [f"http://10.0.0.{number}:8000" for number in range(1, 5)]
BODY = envoy.CHAT % b"hello there"
STREAM = BODY[:-1] + b',"stream":true}'


def picker(level: int = 1, plain: bool = True, **more: Any) -> Picker:
    data = {"pools": [{"replicas": REPLICAS}], "ext_proc": {"response_level": level}, **more}
    made = Picker(Router(from_data(data)), from_data(data))
    made.plain = made.plain and plain
    return made


def opened(made: Picker) -> Session:
    return Session(made, lambda: None)


def chosen(made: Picker, body: bytes = BODY, **head: Any) -> tuple[Session, str]:
    """A stream up to its choice, and the endpoint."""
    stream = opened(made)
    stream.receive(envoy.request_headers(**head))
    stream.receive(envoy.request_body(body))
    return stream, envoy.Answer(stream.take()[0]).endpoint


def state(made: Picker) -> dict[str, Any]:
    """All that a request may leave behind, time excepted."""
    metrics = made.metrics
    found: dict[str, Any] = {
        "requests": dict(metrics.requests),
        "hits": {key: list(cell) for key, cell in metrics.hits.items()},
        "counts": {name: dict(cells) for name, cells in metrics.counts.items()},
        "observed": {
            name: {pool: count for pool, cell in cells.items() if (count := sum(cell[:-1]))}
            for name, cells in metrics.histograms.items()
        },
        "buffered": made.buffered,
        "open": made.open,
        "predicted": len(made.predicted),
    }
    for name, lane in made.router.lanes.items():
        ledger = lane.pool.ledger
        columns = (ledger.requests, ledger.prefill_tokens, ledger.decode_tokens, ledger.running)
        found[name] = [array(column.typecode, column[:4]).tolist() for column in columns]
        found[name] += [ledger.open_tickets, ledger.stale_events, lane.view.blocks]
    return found


# What takes the course


@pytest.mark.parametrize("level", [0, 1])
def test_a_plain_request_stays_on_the_course(level: int) -> None:
    made = picker(level)
    stream, endpoint = chosen(made, response_mode=envoy.NONE)
    assert endpoint
    assert (stream.status is not None) == (level == 0)
    if level:
        stream.receive(envoy.response_headers(served=endpoint))
        stream.receive(envoy.response_trailers())
        assert len(stream.take()) == 2
    stream.closed()
    made.predicted.tick(1e12)
    assert (made.plain_requests, made.handed_on) == (1, 0)
    assert made.router.open_tickets == 0


@pytest.mark.parametrize("plain", [True, False])
def test_both_halves_count_by_zone(plain: bool) -> None:
    """The router stands in zone a; a gateway that serves elsewhere counts where it was served."""
    replicas = [{"url": url, "zone": "ab"[slot % 2]} for slot, url in enumerate(REPLICAS)]
    made = picker(plain=plain, zone="a", pools=[{"replicas": replicas}])
    for served in ("", "10.0.0.2:8000"):
        stream, endpoint = chosen(made)
        assert endpoint in ("10.0.0.1:8000", "10.0.0.3:8000")
        stream.receive(envoy.response_headers(served=served or endpoint))
        stream.receive(envoy.response_trailers())
        stream.closed()
    assert made.plain_requests == (2 if plain else 0)
    assert made.metrics.zones is not None
    requests = {labels[1:]: cell[0] for labels, cell in made.metrics.zones.look().items()}
    assert requests == {("a", "a", "yes"): 1, ("a", "b", "no"): 1}


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (BODY, {"headers": {**envoy.JSON, "content-encoding": "identity"}}),
        (BODY, {"headers": {**envoy.JSON, "content-type": "Multipart/form-data; boundary=x"}}),
        (BODY, {"headers": {**envoy.JSON, "x-gateway-model-name-rewrite": "m"}}),
        (BODY, {"subset": ["10.0.0.1:8000"]}),
        (BODY, {"mode": envoy.BUFFERED}),
        (BODY, {"method": "PUT"}),
        (BODY, {"path": "/v1/other"}),
        (b"[]", {}),
        (b"{", {}),
        (b"", {}),
        (BODY.replace(b'"model"', b'"model_"'), {}),
        (BODY[:-1] + b',"cache_salt":"s"}', {}),
        (BODY[:-1] + b',"kv_transfer_params":{}}', {}),
    ],
)
def test_anything_that_may_steer_is_left_to_the_other_half(
    body: bytes, head: dict[str, Any]
) -> None:
    made, other = picker(), picker(plain=False)
    for each in (made, other):
        each.rand = split_mix(1)
        stream = opened(each)
        stream.receive(envoy.request_headers(**head))
        stream.receive(envoy.request_body(body))
        stream.take()
        stream.closed()
    assert made.plain_requests == 0
    assert state(made) == state(other)


def test_level_2_lists_and_test_headers_are_not_for_the_course() -> None:
    assert not picker(2).plain
    for option in ({"endpoints": "ordered"}, {"test_headers": True}):
        data = {"pools": [{"replicas": REPLICAS}], "ext_proc": option}
        assert not Picker(Router(from_data(data)), from_data(data)).plain


def test_shadow_keeps_everything_off_the_course() -> None:
    made = picker(shadow={"mode": "shadow"})
    stream, endpoint = chosen(made)
    assert (made.plain_requests, endpoint) == (0, "")
    stream.closed()
    made.shadow.switch(mode="active")
    stream, endpoint = chosen(made)
    assert made.plain_requests == 1 and endpoint
    stream.closed()


def test_names_lead_elsewhere_as_soon_as_a_pool_changes() -> None:
    made = picker()
    pool = made.router.pools["default"]
    chosen(made)[0].closed()
    for slot in range(4):
        for other in range(4):
            pool.set_state(other, ReplicaState.READY if other == slot else ReplicaState.EJECTED)
        stream, endpoint = chosen(made)
        assert endpoint == f"10.0.0.{slot + 1}:8000"
        stream.closed()
    for slot in range(4):
        pool.set_state(slot, ReplicaState.EJECTED)
    stream = opened(made)
    stream.receive(envoy.request_headers())
    stream.receive(envoy.request_body(BODY))
    assert envoy.Answer(stream.take()[0]).status == 503
    stream.closed()
    assert made.plain_requests == 5


def test_a_readdressed_replica_is_told_by_its_new_address() -> None:
    made = picker()
    chosen(made)[0].closed()
    made.addresses.update({f"10.0.0.{number}:8000": f"10.9.9.{number}:80" for number in range(5)})
    made.readdressed()
    stream, endpoint = chosen(made)
    assert endpoint.startswith("10.9.9.")
    stream.closed()
    assert made.plain_requests == 2


# From the one half into the other


def test_a_request_that_served_elsewhere_goes_on_in_the_other_half() -> None:
    made = picker()
    stream, endpoint = chosen(made)
    other = next(url[7:] for url in REPLICAS if url[7:] != endpoint)
    stream.receive(envoy.response_headers(served=other))
    assert (made.plain_requests, made.handed_on) == (1, 1)
    ledger = made.router.pools["default"].ledger
    assert [slot for slot in range(4) if ledger.requests[slot]] == [int(other[7]) - 1]
    stream.receive(envoy.response_trailers())
    stream.closed()
    assert made.router.open_tickets == 0


def test_a_body_in_a_response_goes_on_in_the_other_half() -> None:
    made = picker()
    stream, _ = chosen(made)
    stream.receive(envoy.response_headers())
    stream.receive(envoy.response_body(b"{}", end=True))
    assert len(stream.take()) == 2
    assert made.handed_on == 1
    stream.closed()
    assert made.router.open_tickets == 0


# Side by side


def request(rng: random.Random) -> list[bytes]:
    """The messages of a request half, mostly plain."""
    text = b"word " * rng.randrange(1, 400) + b"%d" % rng.randrange(20)
    body = envoy.CHAT % text
    if rng.random() < 0.5:
        body = body[:-1] + b',"stream":true}'
    if rng.random() < 0.1:
        body = rng.choice([body[:-1], b"{}", b"", body[:-1] + b',"cache_salt":"x"}'])
    head: dict[str, Any] = {"response_mode": rng.choice([envoy.NONE, envoy.FULL_DUPLEX])}
    if rng.random() < 0.1:
        head["subset"] = [rng.choice(REPLICAS)[7:]]
    messages = [envoy.request_headers(**head)]
    cut = rng.randrange(len(body) + 1)
    messages.append(envoy.request_body(body[:cut], end=False))
    shape = rng.randrange(4)
    if shape == 0:
        messages.append(envoy.request_body(body[cut:]))
    elif shape == 1:
        messages += [envoy.request_body(body[cut:], end=False), envoy.request_body(b"")]
    elif shape == 2:
        messages += [envoy.request_body(body[cut:], end=False), envoy.request_trailers()]
    else:
        messages[1] = envoy.request_body(body)
    return messages


def response(rng: random.Random) -> list[bytes]:
    served = rng.choice(["", "", rng.choice(REPLICAS)[7:], "10.9.9.9:1"])
    status = rng.choice([200, 200, 200, 429, 500])
    messages = [envoy.response_headers(status, served=served)]
    if rng.random() < 0.2:
        messages.append(envoy.response_body(b"x" * 100, end=rng.random() < 0.5))
    if rng.random() < 0.7:
        messages.append(envoy.response_trailers())
    return messages


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_both_halves_do_the_same(level: int, seed: int) -> None:
    made, other = picker(level), picker(level, plain=False)
    rng = random.Random(seed)
    for number in range(150):
        pair = [(opened(each), each) for each in (made, other)]
        for _, each in pair:  # a choice of either half takes the same number
            each.sow(number)
            each.rand = split_mix(number)
        messages = request(rng) + response(rng)
        for message in messages[: rng.randrange(1, len(messages) + 1)]:
            answers = []
            for stream, _ in pair:
                stream.receive(message)
                answers.append((stream.take(), stream.status, stream.held_bytes))
            assert answers[0] == answers[1]
        early = rng.random() < 0.2
        for stream, each in pair:
            if stream._answered_at and not early:
                stream._answered_at = 0.0
            stream.closed()
            stream.closed()
            if number % 10 == 9:
                each.predicted.tick(1e12)
        assert state(made) == state(other)
    assert made.plain_requests > 30


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(("status", "told"), [(200, 0), (404, 0), (500, 1), (503, 1)])
def test_an_answer_of_5xx_is_told_to_the_probe(
    level: int, plain: bool, status: int, told: int
) -> None:
    made = picker(level, plain)
    seen: list[tuple[str, str]] = []
    made.failing = lambda pool, replica: seen.append((pool, replica))
    stream, endpoint = chosen(made)
    stream.receive(envoy.response_headers(status))
    stream.closed()
    assert seen == [("default", endpoint)] * told
    assert made.router.open_tickets == 0


# Memory that is refused


@pytest.mark.parametrize("module", [proc_gate, leads, expected])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("level", [0, 1])
def test_refused_memory_costs_one_stream(module: Any, after: int, level: int) -> None:
    made = picker(level)
    module._fail_allocation_after(after)
    try:
        for _ in range(4):
            stream = opened(made)
            stream.receive(envoy.request_headers(response_mode=envoy.NONE))
            stream.receive(envoy.request_body(STREAM))
            stream.take()
            if stream.status is None:
                stream.receive(envoy.response_headers())
            stream.closed()
    finally:
        module._fail_allocation_after(-1)
    assert made.open == made.buffered == 0
    made.predicted.tick(1e12)
    assert made.router.open_tickets == 0
    stream, endpoint = chosen(made)
    assert endpoint
    stream.closed()
