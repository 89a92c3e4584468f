"""Where the API is and who we are: service account with rotation, kubeconfig, exec plugins, TLS."""

from __future__ import annotations

import base64
import json
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kube_api.server import KubeServer, kubeconfig
from warmlane.router.errors import ConfigError
from warmlane.router.feeds.kube_access import Denied, KubeConfig, ServiceAccount, open_access
from warmlane.router.feeds.kube_api import ApiError, KubeApi


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    return make_pair(folder)


def make_pair(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "ca.crt", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


def server_tls(pair: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def account(folder: Path, pair: tuple[Path, Path], token: str) -> Path:
    (folder / "token").write_text(token + "\n")
    (folder / "ca.crt").write_bytes(pair[0].read_bytes())
    (folder / "namespace").write_text("prod\n")
    return folder


async def version(access: ServiceAccount | KubeConfig) -> bytes:
    async with KubeApi(access) as api:
        return await api.get("/api/v1/namespaces/prod/pods")


async def test_a_service_account_over_tls_whose_token_rotates(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = account(tmp_path, pair, "first")
    async with KubeServer(tls=server_tls(pair)) as server:
        host, _, port = server.url.removeprefix("https://").partition(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        access = open_access("", "", "discovery.kubernetes", str(root))
        assert access.namespace == "prod" and access.server == server.url
        server.tokens = {"first"}
        assert b"PodList" in await version(access)  # type: ignore[arg-type]
        (root / "token").write_text("second")
        os.utime(root / "token", ns=(1, 1))
        server.tokens = {"second"}
        assert b"PodList" in await version(access)  # type: ignore[arg-type]
        assert [each.token for each in server.requests] == ["first", "second"]
        (root / "token").unlink()
        with pytest.raises(ApiError) as raised:
            await version(access)  # type: ignore[arg-type]
        assert raised.value.status == 401
        assert "second" not in str(raised.value)


async def test_another_ca_is_not_trusted_until_the_file_changes(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    root = account(tmp_path, make_pair(other), "t")
    async with KubeServer(tls=server_tls(pair)) as server:
        access = ServiceAccount(server.url, root, "here")
        with pytest.raises(ApiError, match="certificate"):
            await version(access)
        (root / "ca.crt").write_bytes(pair[0].read_bytes())
        os.utime(root / "ca.crt", ns=(2, 2))
        assert b"PodList" in await version(access)
        context = access.tls()
        (root / "ca.crt").unlink()  # between two links of the kubelet
        assert access.tls() is context


def test_outside_a_cluster_without_a_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match=r"pools\[a\].*set kubeconfig"):
        open_access("", "", "pools[a].discovery.kubernetes")


def test_an_ipv6_service_host(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    root = account(tmp_path, pair, "t")
    assert open_access("", "", "x", str(root)).server == "https://[fd00::1]:6443"


def test_a_service_account_that_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="service account"):
        ServiceAccount("https://x", tmp_path, "x")


async def test_kubeconfig_with_a_token_in_it_or_in_a_file(tmp_path: Path) -> None:
    async with KubeServer() as server:
        path = tmp_path / "config"
        path.write_text(kubeconfig(server, "secret"))
        access = KubeConfig(path, "", "x")
        assert (access.server, access.namespace) == (server.url, "default")
        assert await access.token() == "secret"
        (tmp_path / "tok").write_text("from-file\n")
        path.write_text(kubeconfig(server, tokenFile="tok"))  # relative to the kubeconfig
        assert await KubeConfig(path, "test", "x").token() == "from-file"
        path.write_text(kubeconfig(server, username="u"))
        assert await KubeConfig(path, "", "x").token() == ""


async def test_kubeconfig_with_a_client_certificate(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    context = server_tls(pair)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pair[0])
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in pair]
    async with KubeServer(tls=context) as server:
        user = {"client-certificate-data": encoded[0], "client-key-data": encoded[1]}
        data = json.loads(kubeconfig(server, **user))
        data["clusters"][0]["cluster"]["certificate-authority-data"] = encoded[0]
        path = tmp_path / "config"
        path.write_text(json.dumps(data))
        assert b"PodList" in await version(KubeConfig(path, "", "x"))
        data["users"][0]["user"] = {}
        path.write_text(json.dumps(data))
        with pytest.raises(ApiError):
            await version(KubeConfig(path, "", "x"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"current-context": "none"}, "no context 'none'"),
        ({"clusters": []}, "no cluster 'c'"),
        ({"clusters": [{"name": "c", "cluster": {"server": "ftp://x"}}]}, "no http"),
        ({"users": [{"name": "u", "user": {"auth-provider": {"name": "gcp"}}}]}, "auth-provider"),
        ({"users": [{"name": "u", "user": {"exec": {"args": []}}}]}, "exec: no command"),
        (
            {
                "clusters": [
                    {"name": "c", "cluster": {"server": "https://x", "certificate-authority": "no"}}
                ]
            },
            "No such file",
        ),
    ],
)
def test_a_bad_kubeconfig_says_why(tmp_path: Path, change: dict[str, object], why: str) -> None:
    server = KubeServer()
    server.url = "http://127.0.0.1:1"
    path = tmp_path / "config"
    path.write_text(json.dumps({**json.loads(kubeconfig(server)), **change}))
    with pytest.raises(ConfigError) as raised:
        KubeConfig(path, "", "pools[p]")
    assert why in str(raised.value) and str(path) in str(raised.value)


def plugin(folder: Path, body: str) -> dict[str, object]:
    """An exec plugin: a real program, run as clouds' programs are."""
    script = folder / "plugin"
    script.write_text(f"#!{sys.executable}\nimport json, os, sys\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(script),
        "args": ["a"],
        "env": [{"name": "WHO", "value": "me"}],
    }


async def test_an_exec_plugin_is_run_again_when_its_token_expires(tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = (
        f"n = len(open({str(log)!r}, 'a+').read() or '')\n"
        f"f = open({str(log)!r}, 'a'); f.write('x'); f.close()\n"
        f"n = len(open({str(log)!r}).read())\n"
        "info = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "assert info['kind'] == 'ExecCredential' and sys.argv[1] == 'a'\n"
        "until = '2000-01-01T00:00:00Z' if n == 1 else '2100-01-01T00:00:00Z'\n"
        "print(json.dumps({'status': {'token': os.environ['WHO'] + str(n),"
        " 'expirationTimestamp': until}}))"
    )
    server = KubeServer()
    server.url = "http://127.0.0.1:1"
    path = tmp_path / "config"
    path.write_text(kubeconfig(server, exec=plugin(tmp_path, body)))
    access = KubeConfig(path, "", "x")
    assert await access.token() == "me1"
    assert await access.token() == "me2"  # the first had expired
    assert await access.token() == "me2"
    assert await access.token(again=True) == "me3"  # the server refused it


@pytest.mark.parametrize("body", ["sys.exit(3)", "print('not json')", "print('{}')"])
async def test_an_exec_plugin_that_fails(tmp_path: Path, body: str) -> None:
    server = KubeServer()
    server.url = "http://127.0.0.1:1"
    path = tmp_path / "config"
    path.write_text(kubeconfig(server, exec=plugin(tmp_path, body)))
    with pytest.raises(Denied, match="exec"):
        await KubeConfig(path, "", "x").token()
    path.write_text(kubeconfig(server, exec={"command": "/no/such/program"}))
    with pytest.raises(Denied, match="No such file"):
        await KubeConfig(path, "", "x").token()


async def test_a_token_that_cannot_stand_in_a_header(tmp_path: Path) -> None:
    server = KubeServer()
    server.url = "http://127.0.0.1:1"
    path = tmp_path / "config"
    path.write_text(kubeconfig(server, "two words"))
    with pytest.raises(Denied):
        await KubeConfig(path, "", "x").token()
