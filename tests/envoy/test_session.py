"""The session by itself: every order of messages that a gateway produces, mode by mode."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tests.envoy import gateway as envoy
from tests.envoy.gateway import Answer
from tests.envoy.talk import Talk
from warmlane.envoy.picker import Picker
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.types import ModelList, ReplicaState

REPLICAS = ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::3]:8000"]
ENDPOINTS = {"10.0.0.1:8000", "10.0.0.2:8000", "[fd00::3]:8000"}
BODY = envoy.CHAT % b"hello there"

Make = Callable[..., Picker]


@pytest.fixture(params=["compiled", "python"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Pickers with the compiled course allowed, and without."""
    made: list[Picker] = []

    def build(replicas: list[Any] | None = None, pools: Any = None, **options: Any) -> Picker:
        data: dict[str, Any] = {"pools": pools or [{"replicas": replicas or REPLICAS}]}
        for name in ("models", "limits", "transfer_params"):
            if name in options:
                data[name] = options.pop(name)
        data["shadow"] = {name: options.pop(name) for name in ("mode", "share") if name in options}
        data["ext_proc"] = options
        picker = Picker(Router(from_data(data)), from_data(data))
        if request.param == "python":
            picker.plain = False
        made.append(picker)
        return picker

    yield build
    for picker in made:
        assert picker.open == 0, "a test left a stream open"
        assert picker.buffered == 0, "a body is still counted"


@pytest.fixture
def talk(make: Make) -> Iterator[Talk]:
    talk = Talk(make())
    yield talk
    talk.end()
    assert talk.picker.router.open_tickets == 0


def requests(picker: Picker) -> dict[str, int]:
    """Open requests by endpoint."""
    return {
        replica.endpoint: count
        for pool in picker.router.pools.values()
        for replica in pool
        if (count := pool.ledger.requests[replica.slot])
    }


# Request body modes


def test_full_duplex_answers_when_the_body_is_whole(talk: Talk) -> None:
    assert talk.say(envoy.request_headers()) == []
    assert talk.say(envoy.request_body(BODY[:10], end=False)) == []
    head, *pieces = talk.say(envoy.request_body(BODY[10:]))
    assert head.kind == "request_headers"
    assert head.endpoint in ENDPOINTS
    assert head.set["content-length"] == str(len(BODY))
    assert head.common.clear_route_cache
    assert envoy.joined(pieces) == BODY
    assert pieces[-1].piece[1]
    assert requests(talk.picker) == {head.endpoint: 1}


def test_full_duplex_with_trailers_ends_the_body_by_them(talk: Talk) -> None:
    assert talk.say(envoy.request_headers(), envoy.request_body(BODY, end=False)) == []
    head, piece, trailers = talk.say(envoy.request_trailers())
    assert head.endpoint in ENDPOINTS
    assert "content-length" not in head.set
    assert piece.piece == (BODY, False)
    assert trailers.kind == "request_trailers"


@pytest.mark.parametrize("size", [0, 1, 61_999, 62_000, 62_001, 300_000, 16 << 20])
def test_full_duplex_forwards_any_size_as_it_came(make: Make, size: int) -> None:
    talk = Talk(make())
    body = b"\0" * size
    talk.say(envoy.request_headers(path="/v1/audio/transcriptions", headers={}))
    cut = [body[at : at + 60_000] for at in range(0, size, 60_000)] or [b""]
    for chunk in cut[:-1]:
        assert talk.say(envoy.request_body(chunk, end=False)) == []
    head, *pieces = talk.say(envoy.request_body(cut[-1]))
    assert head.set["content-length"] == str(size)
    assert envoy.joined(pieces) == body
    assert pieces[-1].piece[1]
    talk.end()


@pytest.mark.parametrize("mode", [envoy.BUFFERED, envoy.BUFFERED_PARTIAL])
def test_buffered_answers_the_body(talk: Talk, mode: int) -> None:
    (head,) = talk.say(envoy.request_headers(mode))
    assert head.kind == "request_headers" and not head.endpoint
    (body,) = talk.say(envoy.request_body(BODY))
    assert body.kind == "request_body" and body.endpoint in ENDPOINTS
    assert not body.common.HasField("body_mutation")
    assert "content-length" not in body.set


def test_buffered_with_trailers(talk: Talk) -> None:
    talk.say(envoy.request_headers(envoy.BUFFERED))
    (body,) = talk.say(envoy.request_body(BODY, end=False))
    assert body.endpoint in ENDPOINTS
    (trailers,) = talk.say(envoy.request_trailers())
    assert trailers.kind == "request_trailers"


def test_streamed_answers_headers_at_once_and_lets_chunks_pass(talk: Talk) -> None:
    (head,) = talk.say(envoy.request_headers(envoy.STREAMED))
    assert head.endpoint in ENDPOINTS
    for end in (False, True):
        (chunk,) = talk.say(envoy.request_body(BODY, end=end))
        assert chunk.kind == "request_body"
        assert not chunk.common.HasField("body_mutation")


def test_streamed_without_waiting_answers_when_the_body_is_whole(talk: Talk) -> None:
    talk.say(envoy.request_headers(envoy.STREAMED, early=True))
    assert talk.say(envoy.request_body(BODY[:5], end=False)) == []
    head, *chunks = talk.say(envoy.request_body(BODY[5:]))
    assert head.endpoint in ENDPOINTS
    assert [chunk.kind for chunk in chunks] == ["request_body"] * 2
    assert not any(chunk.common.HasField("body_mutation") for chunk in chunks)


def test_streamed_without_waiting_does_not_hold_a_large_body(talk: Talk) -> None:
    talk.say(envoy.request_headers(envoy.STREAMED, early=True))
    answers: list[Answer] = []
    for _ in range(10):
        answers += talk.say(envoy.request_body(b"x" * 8_000, end=False))
    head, *chunks = answers
    assert head.endpoint in ENDPOINTS
    assert len(chunks) == 10


def test_no_body_is_sent(talk: Talk) -> None:
    (head,) = talk.say(envoy.request_headers(envoy.NONE))
    assert head.endpoint in ENDPOINTS
    assert "content-length" not in head.set


def test_a_get_is_answered_at_its_headers(talk: Talk) -> None:
    (head,) = talk.say(envoy.request_headers(method="GET", path="/v1/models", headers={}, end=True))
    assert head.endpoint in ENDPOINTS
    assert "content-length" not in head.set


def test_each_message_of_a_grpc_body_comes_back(talk: Talk) -> None:
    (head,) = talk.say(envoy.request_headers(envoy.GRPC, headers={}))
    assert head.endpoint in ENDPOINTS
    (piece,) = talk.say(envoy.request_body(b"one", end=False))
    assert piece.piece == (b"one", False)
    (piece,) = talk.say(envoy.request_body(b"two"))
    assert piece.piece == (b"two", True)


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("full_duplex", []),
        ("buffered", ["request_headers"]),
        ("none", ["request_headers"]),
        ("streamed", ["request_headers"]),
    ],
)
def test_a_gateway_that_tells_no_mode(make: Make, mode: str, kinds: list[str]) -> None:
    talk = Talk(make(body_mode=mode))
    assert [each.kind for each in talk.say(envoy.request_headers(None))] == kinds
    talk.end()


def test_a_body_without_headers_is_decided_too(talk: Talk) -> None:
    (body,) = Talk.say(talk, envoy.request_body(BODY))[:1]
    assert body.kind == "request_headers"


# What changes


def test_a_rewritten_model_changes_body_and_length_together(make: Make) -> None:
    picker = make(models=[{"name": "alias", "model": "engine-name"}])
    body = envoy.CHAT.replace(b"fake", b"alias") % b"hello"
    wanted = body.replace(b"alias", b"engine-name")
    talk = Talk(picker)
    head, *pieces = talk.say(envoy.request_headers(), envoy.request_body(body))
    assert envoy.joined(pieces) == wanted
    assert head.set["content-length"] == str(len(wanted))
    talk.end()

    talk = Talk(picker)
    talk.say(envoy.request_headers(envoy.BUFFERED))
    (answer,) = talk.say(envoy.request_body(body))
    assert answer.common.body_mutation.body == wanted
    assert answer.set["content-length"] == str(len(wanted))
    talk.end()

    talk = Talk(picker)
    talk.say(envoy.request_headers(envoy.STREAMED, early=True))
    head, *chunks = talk.say(envoy.request_body(body[:9], end=False), envoy.request_body(body[9:]))
    assert b"".join(chunk.common.body_mutation.body for chunk in chunks) == wanted
    assert head.set["content-length"] == str(len(wanted))
    talk.end()


@pytest.mark.parametrize("name", ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"])
def test_a_header_names_the_model(talk: Talk, name: str) -> None:
    headers = {**envoy.JSON, name: "other"}
    head, *pieces = talk.say(envoy.request_headers(headers=headers), envoy.request_body(BODY))
    assert json.loads(envoy.joined(pieces))["model"] == "other"
    assert name in head.removed


@pytest.mark.parametrize("name", ["x-llm-d-inference-objective", "x-gateway-inference-objective"])
def test_a_header_names_the_objective(
    talk: Talk, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its priority is that of the InferenceObjective, where higher is more important."""
    router, asked = talk.picker.router, []
    prepare = router.prepare

    def seen(request: Any, rand: int = 0) -> Any:
        asked.append(prepare(request, rand))
        return asked[-1]

    monkeypatch.setattr(router, "prepare", seen)
    router.catalog.set_objectives(next(iter(router.pools)), {"gold": 5})
    headers = {**envoy.JSON, name: "gold"}
    talk.say(envoy.request_headers(headers=headers), envoy.request_body(BODY))
    assert [each.request.priority for each in asked] == [-5]


def test_internal_headers_of_a_client_go(talk: Talk) -> None:
    headers = {
        **envoy.JSON,
        "x-llm-d-inference-objective": "gold",
        "x-gateway-inference-fairness-id": "me",
        "x-warmlane-subset": "10.0.0.1:8000",
        "x-data-parallel-rank": "3",
        "x-prefiller-host-port": "evil:80",
        "x-gateway-destination-endpoint": "6.6.6.6:80",
        "x-request-id": "stays",
    }
    head, *_ = talk.say(envoy.request_headers(headers=headers), envoy.request_body(BODY))
    assert set(head.removed) == set(headers) - {
        "content-type",
        "x-request-id",
        "x-gateway-destination-endpoint",
    }
    assert head.endpoint in ENDPOINTS


def test_a_rank_is_told_by_its_header(make: Make) -> None:
    picker = make([{"url": "http://10.0.0.1:8000", "rank": rank} for rank in (0, 1)])
    ranks = set()
    talks = [Talk(picker) for _ in range(2)]
    for talk in talks:
        headers = {**envoy.JSON, "x-data-parallel-rank": "9"}
        head, *_ = talk.say(envoy.request_headers(headers=headers), envoy.request_body(BODY))
        assert head.endpoint == "10.0.0.1:8000"
        assert head.removed == []
        ranks.add(head.set["x-data-parallel-rank"])
    assert ranks == {"0", "1"}
    for talk in talks:
        talk.end()


def test_transfer_parameters_are_refused_or_cut(make: Make) -> None:
    body = b'{"model":"fake","prompt":"x","kv_transfer_params":{"a":1}}'
    talk = Talk(make())
    head = envoy.request_headers(path="/v1/completions")
    (refused,) = talk.say(head, envoy.request_body(body))
    assert refused.status == 400
    talk.end()
    talk = Talk(make(transfer_params="strip"))
    answer, *pieces = talk.say(head, envoy.request_body(body))
    assert envoy.joined(pieces) == b'{"model":"fake","prompt":"x"}'
    assert answer.set["content-length"] == str(len(envoy.joined(pieces)))
    talk.end()


# Choices and refusals


def test_the_ordered_list_is_by_config(make: Make) -> None:
    talk = Talk(make(endpoints="ordered"))
    head, *_ = talk.say(envoy.request_headers(), envoy.request_body(BODY))
    assert set(head.endpoint.split(",")) == ENDPOINTS
    talk.end()


@pytest.mark.parametrize("far", [0, 1, 3])
def test_the_third_of_the_list_stands_in_another_zone(make: Make, far: int) -> None:
    """Six near ones fill all five choices: the other zone is asked for, if it has anybody."""
    zones = "a" * 6 + "b" * far
    replicas = [
        {"url": f"http://10.0.0.{number}:8000", "zone": zone} for number, zone in enumerate(zones)
    ]
    picker = make(replicas, endpoints="ordered")
    picker.router.reload(msgspec.structs.replace(picker.router.config, zone="a"))
    talk = Talk(picker)
    head, *_ = talk.say(envoy.request_headers(), envoy.request_body(BODY))
    talk.end()
    told = [int(each.split(":")[0].rpartition(".")[2]) for each in head.endpoint.split(",")]
    assert len(set(told)) == len(told)
    near = [slot < 6 for slot in told]
    assert near == ([True, True, False, True, True, True] if far else [True] * 5)


@pytest.mark.parametrize(
    "subset",
    [["10.0.0.2:8000"], "10.0.0.2:8000", ["10.0.0.2:8000", "10.0.0.9:1"], " 10.0.0.2:8000 ,"],
)
def test_the_subset_is_honoured(talk: Talk, subset: Any) -> None:
    head, *_ = talk.say(envoy.request_headers(subset=subset), envoy.request_body(BODY))
    assert head.endpoint == "10.0.0.2:8000"


def test_a_subset_entry_without_a_port_means_each_port(make: Make) -> None:
    talk = Talk(make(["http://10.0.0.1:1", "http://10.0.0.1:2", "http://10.0.0.2:1"]))
    seen = talk.say(envoy.request_headers(subset=["10.0.0.1"]), envoy.request_body(BODY))
    assert seen[0].endpoint in ("10.0.0.1:1", "10.0.0.1:2")
    talk.end()


@pytest.mark.parametrize("subset", [[], "", ["10.0.0.1:9999"], [7]])
def test_a_subset_without_an_eligible_replica_is_503(talk: Talk, subset: Any) -> None:
    (refused,) = talk.say(envoy.request_headers(subset=subset), envoy.request_body(BODY))
    assert refused.kind == "immediate_response" and refused.status == 503
    assert refused.set["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
    assert int(refused.set["retry-after"]) >= 1
    error = json.loads(refused.message.immediate_response.body)["error"]
    assert error["type"] == "service_unavailable_error"
    assert talk.session.status == (0, "")


def test_the_subset_can_be_switched_off(make: Make) -> None:
    talk = Talk(make(subset=False))
    head, *_ = talk.say(envoy.request_headers(subset=[]), envoy.request_body(BODY))
    assert head.endpoint in ENDPOINTS
    talk.end()


def test_a_saturated_fleet_is_429(make: Make) -> None:
    filters = [{"name": "not_saturated", "requests": 1}]
    picker = make(pools=[{"replicas": REPLICAS[:1], "filters": filters}])
    first, second = Talk(picker), Talk(picker)
    first.say(envoy.request_headers(), envoy.request_body(BODY))
    (refused,) = second.say(envoy.request_headers(), envoy.request_body(BODY))
    assert refused.status == 429
    assert refused.set["x-llm-d-request-dropped-reason"] == "rejected-saturated"
    first.end()
    second.end()


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"model":'])
def test_a_bad_body_is_400(talk: Talk, body: bytes) -> None:
    answers = talk.say(envoy.request_headers(), envoy.request_body(body))
    assert answers[0].status == 400
    assert "error" in json.loads(answers[0].message.immediate_response.body)


NAMELESS = [b'{"messages":[]}', b'{"model":7}', b'{"model":["m"]}', b'{"model":""}', b"{}"]


@pytest.mark.parametrize("mode", [envoy.FULL_DUPLEX, envoy.BUFFERED])
@pytest.mark.parametrize("body", NAMELESS)
def test_a_whole_request_without_a_model_is_400(talk: Talk, mode: int, body: bytes) -> None:
    *_, refused = talk.say(envoy.request_headers(mode), envoy.request_body(body))
    assert refused.status == 400
    error = json.loads(refused.message.immediate_response.body)["error"]
    assert (error["code"], error["param"]) == ("missing_model", "model")


@pytest.mark.parametrize("mode", [envoy.FULL_DUPLEX, envoy.STREAMED, envoy.BUFFERED])
def test_inference_without_a_body_is_400(talk: Talk, mode: int) -> None:
    (refused,) = talk.say(envoy.request_headers(mode, path="/v1/embeddings", end=True))
    assert refused.status == 400
    error = json.loads(refused.message.immediate_response.body)["error"]
    assert error["code"] == "empty_body"


@pytest.mark.parametrize(
    ("mode", "end"), [(envoy.NONE, False), (envoy.NONE, True), (envoy.STREAMED, False)]
)
def test_a_body_that_is_not_seen_needs_no_model(talk: Talk, mode: int, end: bool) -> None:
    (head,) = talk.say(envoy.request_headers(mode, end=end))
    assert head.endpoint in ENDPOINTS


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/responses"), ("POST", "/tokenize"), ("POST", "/v1/loads")]
)
def test_only_inference_needs_a_model(talk: Talk, method: str, path: str) -> None:
    head, *_ = talk.say(envoy.request_headers(method=method, path=path), envoy.request_body(b"{}"))
    assert head.endpoint in ENDPOINTS


def test_a_gateway_may_name_the_model_but_not_send_an_empty_body(make: Make) -> None:
    headers = {**envoy.JSON, "x-gateway-model-name-rewrite": "fake"}
    picker = make()
    named, empty = Talk(picker), Talk(picker)
    head, *pieces = named.say(
        envoy.request_headers(headers=headers), envoy.request_body(b'{"messages":[]}')
    )
    assert head.endpoint in ENDPOINTS
    assert json.loads(envoy.joined(pieces)) == {"model": "fake", "messages": []}
    (refused,) = empty.say(envoy.request_headers(headers=headers), envoy.request_body(b""))
    assert refused.status == 400
    named.end()
    empty.end()


@pytest.mark.parametrize("state", [ReplicaState.EJECTED, ReplicaState.JOINING])
@pytest.mark.parametrize("mode", ["active", "least-requests"])
def test_nobody_ready_is_503_and_no_last_resort(make: Make, state: ReplicaState, mode: str) -> None:
    picker = make(mode=mode)
    pool = picker.router.pools["default"]
    for slot in range(3):
        pool.set_state(slot, state, "a test says so")
    for end in (False, True):
        talk = Talk(picker)
        asked = envoy.request_headers(envoy.NONE, method="GET", path="/v1/models", end=end)
        (refused,) = talk.say(asked)
        assert refused.status == 503
        assert refused.set["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
        assert "retry-after" in refused.set
        assert picker.router.open_tickets == 0
        assert requests(picker) == {}
        talk.end()
    counted = picker.metrics.counts["warmlane_last_resort_total"]
    assert sum(counted.values()) == 0, "a last resort that is not asked does not count as one"
    pool.set_state(1, ReplicaState.READY, "a test says so")
    talk = Talk(picker)
    head, *_ = talk.say(envoy.request_headers(), envoy.request_body(BODY))
    assert head.endpoint == "10.0.0.2:8000"
    talk.end()


def test_an_unknown_model_is_404(make: Make) -> None:
    picker = make()
    for pool in picker.router.pools.values():
        for replica in pool:
            pool.set_models(replica.slot, ModelList(models=frozenset({"known"})))
    talk = Talk(picker)
    (refused,) = talk.say(envoy.request_headers(), envoy.request_body(BODY))
    assert refused.status == 404
    talk.end()


def test_a_body_beyond_the_limit_is_413(make: Make) -> None:
    talk = Talk(make(limits={"body_bytes": 1000}))
    talk.say(envoy.request_headers())
    (refused,) = talk.say(*[envoy.request_body(b"x" * 600, end=False)] * 2)
    assert refused.status == 413
    talk.end()


def test_too_many_held_bodies_end_the_stream(make: Make) -> None:
    picker = make(limits={"buffered_bytes": 1000})
    talk = Talk(picker)
    assert talk.say(envoy.request_headers(), envoy.request_body(b"x" * 1100, end=False)) == []
    assert talk.session.status is not None and talk.session.status[0] == 8
    talk.end()
    assert picker.metrics.counts["warmlane_limits_reached_total"][("buffered_bytes",)] == 1


def test_models_lead_to_their_pools(make: Make) -> None:
    pools = [
        {"name": "a", "models": ["model-a"], "replicas": ["http://10.0.1.1:80"]},
        {"name": "b", "models": ["model-b"], "replicas": ["http://10.0.2.1:80"]},
    ]
    picker = make(pools=pools)
    for model, endpoint in (("model-a", "10.0.1.1:80"), ("model-b", "10.0.2.1:80")):
        talk = Talk(picker)
        body = BODY.replace(b"fake", model.encode())
        head, *_ = talk.say(envoy.request_headers(), envoy.request_body(body))
        assert head.endpoint == endpoint
        talk.end()


# Out of turn


@pytest.mark.parametrize("message", [b"\xff", b"", b"\x0a\x00", b"\x12\x02\x0a"])
def test_what_is_no_message_ends_the_stream(talk: Talk, message: bytes) -> None:
    assert talk.say(message) == []
    assert talk.session.status is not None and talk.session.status[0] == 3
    assert talk.say(envoy.request_headers()) == []


def test_request_headers_twice_end_the_stream(talk: Talk) -> None:
    talk.say(envoy.request_headers(), envoy.request_headers())
    assert talk.session.status is not None and talk.session.status[0] == 3


def test_a_response_without_a_request_goes_on(talk: Talk) -> None:
    answers = talk.say(
        envoy.response_headers(), envoy.response_body(b"x"), envoy.response_trailers()
    )
    assert [each.kind for each in answers] == [
        "response_headers",
        "response_body",
        "response_trailers",
    ]


def test_an_early_end_leaves_nothing(make: Make) -> None:
    for messages in (
        [],
        [envoy.request_headers()],
        [envoy.request_headers(), envoy.request_body(b"x" * 100, end=False)],
        [envoy.request_headers(), envoy.request_body(BODY)],
        [envoy.request_headers(), envoy.request_body(BODY), envoy.response_headers()],
    ):
        picker = make()
        talk = Talk(picker)
        talk.say(*messages)
        talk.session.closed()
        assert picker.router.open_tickets == 0
        assert requests(picker) == {}


# The response half


def chosen(talk: Talk, **more: Any) -> str:
    head, *_ = talk.say(envoy.request_headers(**more), envoy.request_body(BODY))
    return head.endpoint


def test_the_whole_response_comes_back_in_pieces(talk: Talk) -> None:
    chosen(talk)
    (head,) = talk.say(envoy.response_headers())
    assert head.kind == "response_headers" and not head.mutation.set_headers
    answers = talk.say(
        envoy.response_body(b"a" * 70_000, end=False), envoy.response_body(b"b" * 10)
    )
    assert envoy.joined(answers) == b"a" * 70_000 + b"b" * 10
    assert answers[-1].piece[1]
    assert talk.picker.router.open_tickets == 0


def test_response_chunks_outside_of_full_duplex_pass(talk: Talk) -> None:
    chosen(talk, response_mode=envoy.STREAMED)
    talk.say(envoy.response_headers())
    (chunk,) = talk.say(envoy.response_body(b"abc"))
    assert chunk.kind == "response_body" and not chunk.common.HasField("body_mutation")


def test_response_trailers_end_the_request(talk: Talk) -> None:
    chosen(talk)
    talk.say(envoy.response_headers(), envoy.response_body(b"abc", end=False))
    assert talk.picker.router.open_tickets == 1
    (trailers,) = talk.say(envoy.response_trailers())
    assert trailers.kind == "response_trailers"
    assert talk.picker.router.open_tickets == 0


def test_the_ticket_follows_the_endpoint_that_served(talk: Talk) -> None:
    first = chosen(talk)
    other = next(iter(ENDPOINTS - {first}))
    talk.say(envoy.response_headers(served=other))
    assert requests(talk.picker) == {other: 1}
    count = talk.picker.metrics.counts["warmlane_ext_proc_served_elsewhere_total"]
    assert count == {("default",): 1}


def test_a_stranger_that_served_moves_nothing(talk: Talk) -> None:
    first = chosen(talk)
    talk.say(envoy.response_headers(served="10.9.9.9:1"))
    assert requests(talk.picker) == {first: 1}


def test_usage_is_read_at_level_2_only(make: Make) -> None:
    usage = (
        b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":40,"completion_tokens":2,'
        b'"prompt_tokens_details":{"cached_tokens":32}}}'
    )
    for level, checked in ((1, 0), (2, 40)):
        picker = make(response_level=level)
        talk = Talk(picker)
        chosen(talk)
        talk.say(envoy.response_headers(), envoy.response_body(usage))
        talk.end()
        (cell,) = picker.metrics.hits.values()
        assert cell[2] == checked


def test_first_token_at_level_2_is_that_of_the_stream(make: Make) -> None:
    picker = make(response_level=2)
    talk = Talk(picker)
    body = BODY[:-1] + b',"stream":true}'
    (endpoint, *_) = [
        each.endpoint for each in talk.say(envoy.request_headers(), envoy.request_body(body))[:1]
    ]
    slot = next(each.slot for each in picker.router.pools["default"] if each.endpoint == endpoint)
    ledger = picker.router.pools["default"].ledger
    talk.say(envoy.response_headers(headers={"content-type": "text/event-stream"}))
    assert ledger.running[slot] == 0
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    talk.say(envoy.response_body(role, end=False))
    assert ledger.running[slot] == 0
    token = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    talk.say(envoy.response_body(token, end=False))
    assert ledger.running[slot] == 1
    price = picker.router.lanes["default"].decider.price
    assert price is not None and (price.pace(slot)[3], price.tempo(slot)[4]) == (1, 0)
    talk.say(envoy.response_body(token * 20 + b"data: [DONE]\n\n"))
    assert (price.pace(slot)[3], price.tempo(slot)[4]) == (1, 1)
    talk.end()


def test_first_token_of_a_plain_answer_at_level_1_is_its_head(talk: Talk) -> None:
    chosen(talk)
    ledger = talk.picker.router.pools["default"].ledger
    assert sum(ledger.running[:3]) == 0
    talk.say(envoy.response_headers())
    assert sum(ledger.running[:3]) == 1


def test_level_0_leaves_after_the_choice(make: Make) -> None:
    picker = make(response_level=0)
    talk = Talk(picker)
    first = envoy.request_headers(response_mode=envoy.NONE)
    head, *pieces = talk.say(first, envoy.request_body(BODY))
    assert head.endpoint in ENDPOINTS and envoy.joined(pieces) == BODY
    assert talk.session.status == (0, "")
    talk.session.closed()
    assert picker.router.open_tickets == 1
    picker.predicted.tick(1e12)
    assert picker.router.open_tickets == 0


def test_level_0_stays_where_a_chunk_of_the_answer_could_be_on_its_way(make: Make) -> None:
    talk = Talk(make(response_level=0))
    chosen(talk, response_mode=envoy.FULL_DUPLEX)
    assert talk.session.status is None
    (head, piece) = talk.say(envoy.response_headers(401), envoy.response_body(b"no key"))
    assert head.kind == "response_headers" and piece.piece == (b"no key", True)
    talk.end()


@pytest.mark.parametrize("stream", [False, True])
def test_a_gateway_that_leaves_after_the_headers_of_a_stream(make: Make, stream: bool) -> None:
    picker = make()
    talk = Talk(picker)
    body = BODY[:-1] + b',"stream":true}' if stream else BODY
    talk.say(envoy.request_headers(response_mode=envoy.NONE), envoy.request_body(body))
    talk.say(envoy.response_headers())
    talk.end()
    assert picker.router.open_tickets == stream, "the end of a stream is predicted"
    picker.predicted.tick(1e12)
    assert picker.router.open_tickets == 0


# Test headers


def test_the_conformance_headers(make: Make) -> None:
    headers = {**envoy.JSON, "test-epp-endpoint-selection": "10.0.0.2:8000"}
    message = envoy.request_headers(headers=headers, subset=["10.0.0.1:8000"])
    picker = make(test_headers=True, response_level=0)
    talk = Talk(picker)
    head, *_ = talk.say(message, envoy.request_body(BODY))
    assert head.endpoint == "10.0.0.2:8000", "the header outranks the subset"
    (answer,) = talk.say(envoy.response_headers(served="10.0.0.2:8000"))
    assert answer.set == {"x-conformance-test-served-endpoint": "10.0.0.2:8000"}
    talk.end()
    talk = Talk(make())
    head, *_ = talk.say(message, envoy.request_body(BODY))
    assert head.endpoint == "10.0.0.1:8000", "without the flag the header is any header"
    (answer,) = talk.say(envoy.response_headers(served="10.0.0.1:8000"))
    assert answer.set == {}
    talk.end()


# Shadow


def test_shadow_changes_nothing_and_compares(make: Make) -> None:
    picker = make(mode="shadow")
    picker.router.pools["default"].set_models(0, ModelList(models=frozenset({"fake"})))
    talk = Talk(picker)
    head, *pieces = talk.say(envoy.request_headers(), envoy.request_body(BODY))
    assert not head.endpoint and not head.mutation.set_headers
    assert envoy.joined(pieces) == BODY
    talk.say(envoy.response_headers(served="10.0.0.2:8000"))
    assert requests(picker) == {"10.0.0.2:8000": 1}
    talk.end()
    (row,) = picker.shadow.report().values()
    assert row["decisions"] == 1 and row["unknown"] == 0
    assert picker.router.open_tickets == 0


def test_shadow_learns_from_where_requests_really_went(make: Make) -> None:
    picker = make(mode="shadow")
    body = envoy.CHAT % (b"a long prompt " * 200)
    for _ in range(2):
        talk = Talk(picker)
        talk.say(envoy.request_headers(), envoy.request_body(body))
        talk.say(envoy.response_headers(upstream="10.0.0.2:8000"))
        talk.end()
    (row,) = picker.shadow.report().values()
    assert row["decisions"] == 2
    assert row["our_hit_tokens"] == row["their_hit_tokens"] > 0
    assert row["same"] >= 1


@pytest.mark.parametrize("share", [None, 0.0])
@pytest.mark.parametrize("body", [b"not json", BODY])
def test_shadow_refuses_nothing(make: Make, body: bytes, share: float | None) -> None:
    picker = make(mode="shadow") if share is None else make(share=share)
    talk = Talk(picker)
    head, *pieces = talk.say(envoy.request_headers(subset=[]), envoy.request_body(body))
    assert head.kind == "request_headers"
    assert envoy.joined(pieces) == body
    talk.end()
    assert picker.router.open_tickets == 0


def test_shadow_passes_where_nobody_is_ready(make: Make) -> None:
    picker = make(mode="shadow")
    for slot in range(3):
        picker.router.pools["default"].set_state(slot, ReplicaState.EJECTED, "a test says so")
    talk = Talk(picker)
    head, *pieces = talk.say(envoy.request_headers(), envoy.request_body(BODY))
    assert head.kind == "request_headers" and not head.endpoint
    assert envoy.joined(pieces) == BODY
    talk.end()
    assert picker.router.open_tickets == 0


def test_observability_mode_is_never_answered(make: Make) -> None:
    picker = make()
    talk = Talk(picker)
    assert (
        talk.say(
            envoy.request_headers(envoy.STREAMED, observe=True),
            envoy.request_body(BODY[:5], end=False, observe=True),
            envoy.request_body(BODY[5:], observe=True),
            envoy.response_headers(upstream="10.0.0.1:8000", observe=True),
            envoy.response_body(b"x", observe=True),
        )
        == []
    )
    assert talk.session.status is None
    talk.end()
    (row,) = picker.shadow.report().values()
    assert (row["decisions"], row["unknown"]) == (1, 0)
    assert picker.router.open_tickets == 0


def test_a_share_of_the_traffic(make: Make) -> None:
    picker = make(share=0.5)
    acted = 0
    for _ in range(200):
        talk = Talk(picker)
        head, *_ = talk.say(envoy.request_headers(), envoy.request_body(BODY))
        acted += bool(head.endpoint)
        talk.end()
    assert 50 < acted < 150


def test_one_switch_back_to_least_in_flight(make: Make) -> None:
    picker = make()
    body = envoy.CHAT % (b"a long prompt " * 200)

    def endpoint() -> str:
        talk = Talk(picker)
        head, *_ = talk.say(envoy.request_headers(), envoy.request_body(body))
        talks.append(talk)
        return head.endpoint

    talks: list[Talk] = []
    first = endpoint()
    talks.pop().end()
    assert endpoint() == first, "the prefix is warm there"
    picker.shadow.switch("least-requests")
    assert {endpoint(), endpoint()} == ENDPOINTS - {first}
    assert requests(picker) == dict.fromkeys(ENDPOINTS, 1)
    picker.shadow.switch("active")
    talks[0].end()
    assert endpoint() == first
    for talk in talks[1:]:
        talk.end()


def test_array_columns_are_left_at_zero(make: Make) -> None:
    picker = make()
    for _ in range(20):
        talk = Talk(picker)
        chosen(talk)
        talk.say(envoy.response_headers(end=True))
        talk.end()
    ledger = picker.router.pools["default"].ledger
    assert array("d", ledger.prefill_tokens[:3]) == array("d", [0, 0, 0])
    assert requests(picker) == {}
