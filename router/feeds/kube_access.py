"""Where the Kubernetes API is and who we are there: service account or kubeconfig.

In a cluster the token is read again when its file changes (the kubelet rotates it about every
hour) and the CA likewise. Outside, a kubeconfig gives server, CA and a token, token file, client
certificate or exec plugin. Tokens and keys are never logged. ConfigError: nothing usable there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from warmlane.router.config_load import read as read_yaml
from warmlane.router.errors import ConfigError

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_EXEC_S = 30.0
_EXEC_MARGIN_S = 60.0  # a credential is renewed that long before it expires


class Denied(Exception):
    """No credential at this moment; the message is one line for the log."""


class Access(Protocol):
    """server: origin of the API, without a slash at its end. namespace: the default one."""

    server: str
    namespace: str

    def tls(self) -> ssl.SSLContext | bool:
        """What to verify the server with; the same object until something changed."""
        ...

    async def token(self, *, again: bool = False) -> str:
        """Bearer token, "" for none. again: the last one was refused. Raises Denied."""
        ...


def open_access(kubeconfig: str, context: str, where: str, root: str = SERVICE_ACCOUNT) -> Access:
    """The kubeconfig's access, or else the service account's. ConfigError names the field."""
    if kubeconfig:
        return KubeConfig(Path(kubeconfig).expanduser(), context, where)
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    if not host:
        raise ConfigError(
            f"{where}: not in a cluster (KUBERNETES_SERVICE_HOST is not set): set kubeconfig"
        )
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    return ServiceAccount(f"https://{host}:{port}", Path(root), where)


class _File:
    """The content of a small file, read again when its stat changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stat: tuple[int, int, int] | None = None
        self._content = b""

    def read(self) -> tuple[bytes, bool]:
        """(content, did it change). Raises OSError."""
        stat = self.path.stat()
        now = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if now == self._stat:
            return self._content, False
        content = self.path.read_bytes()
        changed = content != self._content
        self._stat, self._content = now, content
        return content, changed


class ServiceAccount:
    """The projected volume of a pod: token, ca.crt and namespace."""

    def __init__(self, server: str, root: Path, where: str) -> None:
        self.server = server
        self._token = _File(root / "token")
        self._ca = _File(root / "ca.crt")
        self._context: ssl.SSLContext | None = None
        try:
            self.namespace = (root / "namespace").read_text(encoding="utf-8").strip()
            self._token.read()
            self.tls()
        except (OSError, UnicodeDecodeError, ssl.SSLError) as error:
            raise ConfigError(f"{where}: service account in {root}: {error}") from error

    def tls(self) -> ssl.SSLContext:
        try:
            content, changed = self._ca.read()
        except OSError:
            # The kubelet swaps a link: between two of them the old CA is still right.
            if self._context is None:
                raise
            return self._context
        if self._context is None or changed:
            self._context = ssl.create_default_context(cadata=content.decode("ascii", "replace"))
        return self._context

    async def token(self, *, again: bool = False) -> str:
        del again  # every call looks at the file
        try:
            content, _ = self._token.read()
        except OSError as error:
            raise Denied(f"service account token: {error.strerror}") from error
        return _header_safe(content)


class KubeConfig:
    """One context of a kubeconfig file. Relative paths in it are relative to the file."""

    def __init__(self, path: Path, context: str, where: str) -> None:
        self._base = path.parent
        self._where = f"{where}: {path}"
        data = read_yaml(path)
        if not isinstance(data, Mapping):
            raise ConfigError(f"{self._where}: not a kubeconfig")
        name = context or str(data.get("current-context") or "")
        found = self._named(data, "contexts", "context", name)
        cluster = self._named(data, "clusters", "cluster", str(found.get("cluster") or ""))
        user_name = str(found.get("user") or "")
        self._user = self._named(data, "users", "user", user_name) if user_name else {}
        self.namespace = str(found.get("namespace") or "default")
        self.server = str(cluster.get("server") or "").rstrip("/")
        if not self.server.startswith(("http://", "https://")):
            raise ConfigError(f"{self._where}: the cluster has no http(s) server")
        self._tls = self._context(cluster) if self.server.startswith("https://") else True
        path_of_token = self._user.get("tokenFile")
        self._token_file = _File(self._base / str(path_of_token)) if path_of_token else None
        plugin = self._user.get("exec")
        self._plugin = _Plugin(plugin, self._where) if isinstance(plugin, Mapping) else None
        if "auth-provider" in self._user:
            raise ConfigError(f"{self._where}: auth-provider is not supported: use exec or a token")

    def tls(self) -> ssl.SSLContext | bool:
        return self._tls

    async def token(self, *, again: bool = False) -> str:
        if self._plugin is not None:
            return await self._plugin.token(again=again)
        if self._token_file is not None:
            try:
                return _header_safe(self._token_file.read()[0])
            except OSError as error:
                raise Denied(f"tokenFile: {error.strerror}") from error
        return _header_safe(str(self._user.get("token") or "").encode())

    def _named(self, data: Mapping[str, Any], kind: str, field: str, name: str) -> dict[str, Any]:
        entries = data.get(kind)
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, Mapping) and entry.get("name") == name:
                value = entry.get(field)
                return dict(value) if isinstance(value, Mapping) else {}
        raise ConfigError(f"{self._where}: no {field} {name!r} in {kind}")

    def _context(self, cluster: Mapping[str, Any]) -> ssl.SSLContext:
        try:
            ca = self._bytes(cluster, "certificate-authority")
            context = ssl.create_default_context(cadata=ca.decode("ascii") if ca else None)
            if cluster.get("insecure-skip-tls-verify") is True:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            certificate = self._bytes(self._user, "client-certificate")
            key = self._bytes(self._user, "client-key")
            if certificate and key:
                _load_pair(context, certificate, key)
        except (OSError, ValueError, binascii.Error) as error:  # ssl.SSLError is an OSError
            raise ConfigError(f"{self._where}: {error}") from error
        return context

    def _bytes(self, node: Mapping[str, Any], field: str) -> bytes:
        inline = node.get(f"{field}-data")
        if inline:
            return base64.b64decode(str(inline), validate=True)
        path = node.get(field)
        return (self._base / str(path)).read_bytes() if path else b""


class _Plugin:
    """An exec credential plugin (client.authentication.k8s.io/v1 and v1beta1), as clouds use."""

    def __init__(self, spec: Mapping[str, Any], where: str) -> None:
        command, words = spec.get("command"), spec.get("args") or []
        if not isinstance(command, str) or not command or not isinstance(words, list):
            raise ConfigError(f"{where}: exec: no command")
        self._version = str(spec.get("apiVersion") or "client.authentication.k8s.io/v1")
        self._argv = [command, *map(str, words)]
        self._env = {
            str(entry["name"]): str(entry["value"])
            for entry in spec.get("env") or []
            if isinstance(entry, Mapping) and {"name", "value"} <= entry.keys()
        }
        self._token = ""
        self._until: datetime | None = None

    async def token(self, *, again: bool) -> str:
        fresh = self._until is None or datetime.now(UTC) < self._until
        if self._token and fresh and not again:
            return self._token
        info = {"kind": "ExecCredential", "apiVersion": self._version}
        env = {**os.environ, **self._env}
        env["KUBERNETES_EXEC_INFO"] = msgspec.json.encode(
            {**info, "spec": {"interactive": False}}
        ).decode()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise Denied(f"exec {self._argv[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(_EXEC_S):
                output, _ = await process.communicate()
        except TimeoutError as error:
            raise Denied(f"exec {self._argv[0]}: no answer in {_EXEC_S:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise Denied(f"exec {self._argv[0]}: exit status {process.returncode}")
        return self._take(output)

    def _take(self, output: bytes) -> str:
        try:
            status = msgspec.json.decode(output)["status"]
            token, until = status["token"], status.get("expirationTimestamp")
            moment = datetime.fromisoformat(until) if until else None
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise Denied(f"exec {self._argv[0]}: no token in its output") from error
        if moment is not None and moment.tzinfo is not None:
            self._until = datetime.fromtimestamp(moment.timestamp() - _EXEC_MARGIN_S, UTC)
        else:
            self._until = None
        self._token = _header_safe(str(token).encode())
        return self._token


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """OpenSSL takes a client certificate from a file only; it is gone before we return."""
    with tempfile.NamedTemporaryFile() as file:  # mode 0600
        file.write(certificate + b"\n" + key)
        file.flush()
        context.load_cert_chain(file.name)


def _header_safe(content: bytes) -> str:
    text = content.decode("ascii", "replace").strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise Denied("the token is not one line of printable ASCII")
    return text
