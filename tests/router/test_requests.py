"""Headers and body -> Request: what is read, what is refused, what is cut out."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import bodies
from warmlane.router import requests
from warmlane.router.errors import RequestError
from warmlane.router.types import Kind, Request

JSON = {b"content-type": b"application/json"}
CHAT = "/v1/chat/completions"


def parse(body: bytes, path: str = CHAT, **options: Any) -> Request:
    request, passed = requests.parse("POST", path, JSON, body, **options)
    assert passed is body
    return request


def refused(body: bytes, path: str = CHAT, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        requests.parse("POST", path, JSON, body, **options)
    return caught.value


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", Kind.CHAT),
        ("/v1/chat/completions?a=b", Kind.CHAT),
        ("/v1/completions", Kind.COMPLETIONS),
        ("/v1/responses", Kind.RESPONSES),
        ("/v1/messages", Kind.MESSAGES),
        ("/v1/embeddings", Kind.EMBEDDINGS),
        ("/v1/messages/count_tokens", Kind.OTHER),
        ("/v1/chat%2Fcompletions", Kind.OTHER),
        ("/tokenize", Kind.OTHER),
        ("", Kind.OTHER),
    ],
)
def test_kind_of_path(path: str, kind: Kind) -> None:
    assert requests.kind_of(path) is kind


def test_every_field_of_a_chat() -> None:
    body = json.dumps(
        {
            "model": "org/m",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "max_tokens": 5,
            "max_completion_tokens": 7,
            "cache_salt": "pepper",
            "session_id": "s1",
            "priority": -2,
        }
    ).encode()
    assert parse(body) == Request(
        kind=Kind.CHAT,
        path=CHAT,
        model="org/m",
        stream=True,
        prompt=b"\xffuser\xfehi",
        max_tokens=7,
        salt="pepper",
        session="s1",
        priority=-2,
    )


def test_headers_that_are_read() -> None:
    body = b'{"model":"m","session_id":"body"}'
    headers = {**JSON, b"x-session-id": b"header", b"x-warmlane-subset": b"a:1, b:2,,"}
    request, _ = requests.parse("POST", CHAT, headers, body)
    assert (request.session, request.subset) == ("header", None)
    request, _ = requests.parse("POST", CHAT, headers, body, trust_subset=True)
    assert request.subset == frozenset({"a:1", "b:2"})
    request, _ = requests.parse("GET", "/v1/models", headers, b"", trust_subset=True)
    assert request == Request(
        kind=Kind.OTHER, path="/v1/models", session="header", subset=frozenset({"a:1", "b:2"})
    )


@pytest.mark.parametrize(
    ("header", "priority"),
    [(b"-7", -7), (b" 12 ", 12), (b"0", 0), (b"high", 3), (b"", 3), (b"1.5", 3), (b"9" * 30, 3)],
)
def test_the_priority_header_wins_unless_it_is_garbage(header: bytes, priority: int) -> None:
    headers = {**JSON, b"x-vllm-priority": header}
    body = b'{"model":"m","messages":[],"priority":3}'
    request, passed = requests.parse("POST", CHAT, headers, body)
    assert request.priority == priority and passed is body


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "PUT"])
def test_only_post_has_a_kind(method: str) -> None:
    body = b'{"model":"m","messages":[]}'
    request, passed = requests.parse(method, CHAT, JSON, body)
    assert request.kind is Kind.OTHER and request.prompt is None and passed is body


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([*requests.KINDS, "/rerank"]))
def test_the_full_decoder_gives_the_same_request(seed: int, path: str) -> None:
    rng = random.Random(seed)
    fields = json.loads(bodies.body(rng))
    fields = {name: inner for name, inner in fields.items() if "transfer" not in name}
    plain = json.dumps(fields).encode()
    head = "".join(f"\\u{ord(char):04x}" for char in "model")
    escaped = plain.replace(b'"model"', f'"{head}"'.encode())
    twice = b'{"stream":"no","model":3,"messages":null,' + plain.lstrip()[1:]
    if "messages" in fields and "stream" in fields and len(fields) > 1:
        assert parse(twice, path) == parse(plain, path)
    assert parse(escaped, path) == parse(plain, path)
    for codec in ("utf-16", "utf-16-le", "utf-32-be", "utf-8-sig"):
        assert parse(plain.decode().encode(codec), path) == parse(plain, path)


def test_what_engines_read_and_msgspec_does_not() -> None:
    body = b'{"model":"m","mod\\u0065l":"n","top_p":NaN,'
    body += b'"messages":[{"role":"user","content":"\\ud800"}]}'
    request = parse(body)
    assert (request.model, request.prompt) == ("n", b"\xffuser\xfe\xed\xa0\x80")


@pytest.mark.parametrize("path", list(requests.KINDS))
@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b"null", b'{"a":1}x', b"\x00", b'{"model":"\xff"}', b"hello"]
)
def test_a_body_that_is_no_json_object_is_refused_on_known_paths(path: str, body: bytes) -> None:
    error = refused(body, path)
    assert (error.status, error.code, error.kind) == (400, "invalid_json", "invalid_request_error")
    other = parse(body, "/unknown")
    assert (other.kind, other.model) == (Kind.OTHER, "")


def test_a_large_body_is_never_given_to_the_slow_decoder() -> None:
    body = b'{"model":"m","x":NaN,"\\u0061":"' + b"a" * requests.LENIENT_BYTES + b'"}'
    assert refused(body).status == 400
    assert refused(body, "/unknown").status == 400


def test_the_prompt_is_cut_at_the_cap() -> None:
    body = b'{"messages":[{"role":"user","content":"' + b"a" * 1000 + b'"}]}'
    for raw in (body, body.replace(b"messages", b"mess\\u0061ges")):
        assert parse(raw, prompt_bytes=100).prompt == b"\xffuser\xfe" + b"a" * 94


SPELLINGS = ["kv_transfer_params", "k\\u0076_transfer_params", "\\u006bv_transfer_\\u0070arams"]
OTHERS = ["ec_transfer_params", "e\\u0063_transfer_params"]


@pytest.mark.parametrize("name", SPELLINGS + OTHERS)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/inference/v1/generate", "/x"])
@pytest.mark.parametrize("shape", ['{{"{0}":{{}},"model":"m"}}', '{{"model":"m","{0}":1,"{0}":2}}'])
def test_transfer_params_are_refused_in_any_spelling(name: str, path: str, shape: str) -> None:
    plain = json.loads(f'"{name}"')
    for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"):
        error = refused(shape.format(name).encode(codec), path)
        assert (error.status, error.param) == (400, plain)


@pytest.mark.parametrize("codec", ["utf-16", "utf-8-sig"])
def test_strip_refuses_what_it_cannot_cut(codec: str) -> None:
    body = '{"kv_transfer_params":{}}'.encode(codec)
    assert refused(body, transfer_params="strip").status == 400


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_strip_cuts_the_params_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    members = [(f"k{n}", bodies.anything(rng)) for n in range(rng.randrange(5))]
    names = [rng.choice(requests.TRANSFER_FIELDS) for _ in range(rng.randint(1, 3))]
    members += [(name, bodies.anything(rng)) for name in names]
    rng.shuffle(members)
    spelled = [
        (name, bodies.spell(rng, name) + bodies.space(rng) + ":" + bodies.encode(rng, inner))
        for name, inner in members
    ]
    raw = "{" + ",".join(bodies.space(rng) + text for _, text in spelled) + " }"
    body = raw.encode("utf-8", "surrogatepass")
    _, passed = requests.parse("POST", "/x", JSON, body, transfer_params="strip")
    kept = {name: inner for name, inner in members if name not in requests.TRANSFER_FIELDS}
    assert json.loads(passed) == json.loads(
        bodies.encode(rng, tuple(kept.items())).encode("utf-8", "surrogatepass")
    )
    for name, text in spelled:
        if name not in requests.TRANSFER_FIELDS:
            assert text.encode("utf-8", "surrogatepass") in passed
    assert not any(name.encode() in passed for name in requests.TRANSFER_FIELDS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"kv_transfer_params":{"a":[1]},"b":2}', b'{"b":2}'),
        (b'{ "b" : 2 , "kv_transfer_params" : null }', b'{ "b" : 2 }'),
        (b'{"a":1, "ec_transfer_params":1, "b":2}', b'{"a":1, "b":2}'),
        (b'{ "kv_transfer_params":1, "ec_transfer_params":2 }', b"{  }"),
    ],
)
def test_strip_byte_for_byte(body: bytes, expected: bytes) -> None:
    assert requests.parse("POST", "/x", JSON, body, transfer_params="strip")[1] == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","x":1}', b'{"model":"n\xc3\xa9\\"w","x":1}'),
        (
            b'{ "x":{"model":"a"}, "mod\\u0065l" : 5 }',
            b'{ "x":{"model":"a"}, "mod\\u0065l" : "n\xc3\xa9\\"w" }',
        ),
        (b'{"model":1,"model":2}', b'{"model":"n\xc3\xa9\\"w","model":"n\xc3\xa9\\"w"}'),
        (b'{"x":1}', b'{"model":"n\xc3\xa9\\"w","x":1}'),
        (b" {}", b' {"model":"n\xc3\xa9\\"w"}'),
    ],
)
def test_rewrite_model(body: bytes, expected: bytes) -> None:
    assert requests.rewrite_model(body, 'né"w') == expected


def test_rewrite_model_of_other_encodings() -> None:
    body = '{"a":1,"model":"x"}'.encode("utf-16")
    assert json.loads(requests.rewrite_model(body, "n")) == {"a": 1, "model": "n"}
    with pytest.raises(RequestError):
        requests.rewrite_model(b"[1]", "n")


def test_multipart_is_routed_by_load_and_its_model_is_read() -> None:
    headers = {b"content-type": b"Multipart/Form-Data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = part % (b"file", b"{" * 200_000) + part % (b"model", b"whisper") + b"--b--\r\n"
    request, passed = requests.parse("POST", "/v1/audio/transcriptions", headers, body)
    assert (request.kind, request.model, request.rewrite_model) == (Kind.OTHER, "whisper", False)
    assert passed is body
    assert requests.parse("POST", "/x", headers, b"--b--")[0].model == ""


def test_a_compressed_body_is_refused_where_it_would_be_read() -> None:
    headers = {**JSON, b"content-encoding": b"gzip"}
    with pytest.raises(RequestError) as caught:
        requests.parse("POST", CHAT, headers, b"\x1f\x8b")
    assert caught.value.status == 415
    assert requests.parse("POST", "/x", headers, b"\x1f\x8b")[0].kind is Kind.OTHER
    headers[b"content-encoding"] = b"identity"
    assert requests.parse("POST", CHAT, headers, b"{}")[0].kind is Kind.CHAT


def test_internal_headers() -> None:
    for name in (b"x-warmlane-replica", b"x-gateway-destination-endpoint", b"x-llm-d-x"):
        assert requests.is_internal(name)
    assert requests.is_internal(b"x-data-parallel-rank")
    for name in (b"x-session-id", b"authorization", b"x-request-id", b"traceparent", b""):
        assert not requests.is_internal(name)
    assert b"connection" in requests.HOP_HEADERS and b"content-length" not in requests.HOP_HEADERS
