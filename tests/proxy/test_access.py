"""TLS on both sides, API keys, debug headers, the router's own answers."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
from pathlib import Path

import pytest

from warmlane.router.errors import ConfigError
from warmlane.router.proxy.access import Keys

from .engine import GOOD, STREAM, Engine, answer_body, chat_body, streams
from .rig import get, post, rig


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make_certificate(cert, key)
    return cert, key


def make_certificate(cert: Path, key: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert),
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cert))


async def test_tls_listener(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    async with rig(
        streams(*STREAM), listen={"tls_cert": str(cert), "tls_key": str(key)}
    ) as running:
        peer = await running.connect(tls=trusting(cert))
        for _ in range(2):
            await peer.send(post(chat_body(stream=True)))
            assert (await peer.reply()).body == b"".join(STREAM)
        # A client that speaks plain HTTP to it gets nowhere, and harms nobody.
        plain = await running.connect()
        await plain.send(post(chat_body()))
        assert not (await plain.at_end()).startswith(b"HTTP")


async def test_certificate_is_reloaded(tmp_path: Path) -> None:
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    make_certificate(cert, key)
    async with rig(GOOD, listen={"tls_cert": str(cert), "tls_key": str(key)}) as running:
        await running.connect(tls=trusting(cert))
        make_certificate(cert, key)
        with pytest.raises(ssl.SSLError):
            await running.connect(tls=trusting(cert))
        running.proxy.reload_files()
        peer = await running.connect(tls=trusting(cert))
        key.write_text("broken")
        running.proxy.reload_files()  # reported, and the good pair stays
        peer = await running.connect(tls=trusting(cert))
        await peer.send(post(chat_body()))
        assert (await peer.reply()).status == 200


async def test_https_replica(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    async with rig(Engine(GOOD, tls=context)) as running:
        for _ in range(3):
            assert (await running.chat()).body == answer_body()
        assert running.engines[0].connections == 1


async def test_https_replica_with_an_unknown_certificate(certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with rig(Engine(GOOD, tls=context)) as running:
        reply = await running.chat()
        assert reply.status == 502
        assert reply.json["error"]["code"] == "upstream_connect"


async def test_api_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# team a\nsk-one\n\n  sk-two  \n")
    async with rig(GOOD, listen={"api_key_file": str(path)}) as running:
        for extra, status in (
            ([], 401),
            (["Authorization: Bearer sk-one"], 200),
            (["authorization:bearer   sk-two "], 200),
            (["x-api-key: sk-two"], 200),
            (["Authorization: Bearer sk-three", "X-API-Key: sk-one"], 200),
            (["Authorization: Bearer sk-on"], 401),
            (["Authorization: Bearer "], 401),
            (["Authorization: Basic sk-one"], 401),
            (["x-api-key: # team a"], 401),
        ):
            reply = await running.ask(post(chat_body(), extra=extra))
            assert reply.status == status, extra
        assert reply.json["error"]["code"] == "invalid_api_key"
        assert (await running.ask(get("/v1/models"), "GET")).status == 401
        assert (await running.ask(get("/health"), "GET")).status == 200
        # The client's own header passes on.
        assert running.seen[0].values(b"authorization") == [b"Bearer sk-one"]
        path.write_text("sk-three\n")
        os.utime(path, (1, 1))
        running.proxy.reload_files()
        assert (await running.ask(post(chat_body(), extra=["x-api-key: sk-one"]))).status == 401
        assert (await running.ask(post(chat_body(), extra=["x-api-key: sk-three"]))).status == 200
        path.unlink()
        running.proxy.reload_files()
        assert (await running.ask(post(chat_body(), extra=["x-api-key: sk-three"]))).status == 200


def test_key_file_must_hold_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"listen\.api_key_file"):
        Keys(str(path), "listen.api_key_file")
    with pytest.raises(ConfigError):
        Keys(str(tmp_path / "absent"), "listen.api_key_file")
    assert not Keys("", "listen.api_key_file")


async def test_debug_headers_are_off_by_default(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    async with rig(GOOD, admin={"token_file": str(token)}) as running:
        peer = await running.connect()
        for extra, shown in (
            ([], False),
            (["x-warmlane-debug-key: wrong"], False),
            (["x-warmlane-debug-key: secret"], True),
            ([], False),  # the same connection, without the key again
        ):
            await peer.send(post(chat_body(), extra=extra))
            reply = await peer.reply()
            assert (reply.header(b"x-warmlane-replica") is not None) is shown
        assert not any(seen.values(b"x-warmlane-debug-key") for seen in running.seen)


async def test_debug_headers_by_flag() -> None:
    async with rig(GOOD, debug_headers=True) as running:
        reply = await running.chat()
        assert reply.header(b"x-warmlane-replica") == b"127.0.0.1:%d" % running.engines[0].port
        assert reply.header(b"x-warmlane-hit-tokens") == b"0"
        assert float(reply.header(b"x-warmlane-decision-us") or b"") > 0


async def test_own_answers() -> None:
    pool = {"models": ["m", "org/other"]}
    async with rig(GOOD, pool=pool) as running:
        reply = await running.ask(get("/health"), "GET")
        assert (reply.status, reply.body) == (200, b"")
        listed = json.loads((await running.ask(get("/v1/models"), "GET")).body)
        assert listed["object"] == "list"
        assert {each["id"] for each in listed["data"]} == {"m", "org/other"}
        one = await running.ask(get("/v1/models/org%2Fother"), "GET")
        assert one.json["id"] == "org/other"
        assert (await running.ask(get("/v1/models/org/other"), "GET")).status == 200
        assert (await running.ask(get("/v1/models/absent"), "GET")).status == 404
        reply = await running.ask(get("/v1/models", method="HEAD"), "HEAD")
        assert int(reply.header(b"content-length") or b"0") > 0
        assert running.seen == []


async def test_errors_of_the_router_keep_the_connection() -> None:
    async with rig(GOOD, pool={"models": ["other"]}) as running:
        peer = await running.connect()
        for body, status in ((chat_body(), 404), (b"{not json", 400)):
            await peer.send(post(body))
            reply = await peer.reply()
            assert reply.status == status
            assert set(reply.json["error"]) == {"message", "type", "param", "code"}
        await peer.send(get("/health"))
        assert (await peer.reply("GET")).status == 200
        assert running.count("rejected_total") == 2


async def test_alias_rewrites_body_and_length() -> None:
    models = [{"name": "public", "pool": "default", "model": "the-engines-own-name"}]
    body = b'{"model": "public", "x":1,  "messages": [{"role":"user","content":"a"}]}'
    async with rig(GOOD, models=models) as running:
        peer = await running.connect()
        for _ in range(2):
            await peer.send(post(body))
            assert (await peer.reply()).status == 200
        assert running.seen[0].body == body.replace(b"public", b"the-engines-own-name")


async def test_unknown_paths_pass() -> None:
    async with rig(GOOD) as running:
        for path in ("/tokenize", "/v1/score", "/v9/anything?x=1", "/version"):
            await running.ask(post(b'{"model":"m"}', path))
        await running.ask(get("/metrics"), "GET")
        await running.ask(get("/a/b", method="DELETE"), "DELETE")
        assert [seen.lines[0].split()[0] for seen in running.seen] == [b"POST"] * 4 + [
            b"GET",
            b"DELETE",
        ]


async def test_concurrent_clients_do_not_mix() -> None:
    async def echo(seen: object, out: object) -> None:
        number = json.loads(seen.body)["n"]  # type: ignore[attr-defined]
        await asyncio.sleep(number % 7 / 1000)
        await streams(*STREAM[:2], b"data: %d\n\n" % number)(seen, out)  # type: ignore[arg-type]

    async with rig(echo, echo, echo) as running:
        replies = await asyncio.gather(*[running.chat(stream=True, n=n) for n in range(200)])
        for n, reply in enumerate(replies):
            assert reply.body.endswith(b"data: %d\n\n" % n)
