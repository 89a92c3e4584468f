"""Error bodies in the shapes of the engines' APIs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.core.test_sse import fed
from warmlane.router import problems
from warmlane.router.errors import ConfigError, NoReplica, RequestError, RouterError
from warmlane.router.types import Kind


def shown(error: RouterError, kind: Kind = Kind.CHAT) -> tuple[int, dict[str, str], Any]:
    status, headers, body = problems.problem(error, kind)
    return status, headers, json.loads(body)


def test_a_request_error() -> None:
    error = RequestError(404, "no such model", kind="not_found_error", param="model", code="gone")
    status, headers, body = shown(error)
    assert (status, headers) == (404, {"content-type": "application/json"})
    assert body == {
        "error": {
            "message": "no such model",
            "type": "not_found_error",
            "param": "model",
            "code": "gone",
        }
    }
    assert shown(RequestError(415, "x"))[2]["error"]["code"] == 415


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NoReplica("none is ready"), 503, "1"),
        (NoReplica("all are full", status=429, retry_after_s=2.1), 429, "3"),
        (NoReplica("none", retry_after_s=0.0), 503, "1"),
    ],
)
def test_no_replica_says_when_to_come_back(error: NoReplica, status: int, retry_after: str) -> None:
    got, headers, body = shown(error)
    assert (got, headers["retry-after"]) == (status, retry_after)
    assert body["error"]["message"] == error.message
    assert body["error"]["code"] == status


def test_what_a_client_must_not_see() -> None:
    status, _, body = shown(ConfigError("pools.0.engine_api_key_file: /secret/key"))
    assert status == 500 and "secret" not in json.dumps(body)
    body = shown(NoReplica("none", removed={"ready:10.0.0.1:8000": 3}))[2]
    assert "10.0.0.1" not in json.dumps(body)


@pytest.mark.parametrize(
    "status", [400, 401, 404, 408, 413, 429, 431, 501, 502, 503, 504, 418, 507]
)
@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.MESSAGES, Kind.OTHER])
def test_generic_problems(status: int, kind: Kind) -> None:
    got, headers, body = problems.generic(status, kind)
    assert got == status
    assert json.loads(body)["error"]["message"]
    assert json.loads(body)["error"]["type"]
    assert ("retry-after" in headers) == (status in (429, 503))
    assert ("www-authenticate" in headers) == (status == 401)
    assert json.loads(problems.generic(status, kind, "why")[2])["error"]["message"] == "why"


def test_anthropic_shape() -> None:
    assert shown(NoReplica("busy"), Kind.MESSAGES)[2] == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "busy"},
    }
    for status, name in ((418, "invalid_request_error"), (502, "api_error")):
        body = json.loads(problems.generic(status, Kind.MESSAGES)[2])
        assert body["error"]["type"] == name


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("code", [502, 504, 999, "upstream_closed"])
def test_a_stream_error_event_is_an_error_and_not_an_end(kind: Kind, code: int | str) -> None:
    event = problems.stream_error_event('it "broke"', code, kind)
    assert event.endswith(b"\n\n") and event.count(b"\n\n") == 1 and b"[DONE]" not in event
    data = json.loads(event.partition(b"data: ")[2])
    assert data["error"]["message"] == 'it "broke"'
    assert fed(event, []).error
