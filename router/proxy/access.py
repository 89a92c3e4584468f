"""Who may use the listener: API keys from a file, and the TLS context, both reloaded when changed.

Keys are held and compared as SHA-256 digests, with a comparison whose time does not depend on
where two digests differ, and every key is compared: the time tells nothing about them.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from warmlane.router.config import Listen
from warmlane.router.errors import ConfigError, RequestError


class Keys:
    """Accepted keys: one per line of a file; blank lines and lines that begin with # are skipped.

    path: "" accepts everybody. ConfigError: the file cannot be read or holds no key.
    """

    def __init__(self, path: str, field: str) -> None:
        self._path = Path(path) if path else None
        self._field = field
        self._stamp: tuple[int, int, int] | None = None
        self._digests: list[bytes] = []
        if self._path is not None:
            self.reload()

    def __bool__(self) -> bool:
        return self._path is not None

    def reload(self) -> bool:
        """Read the file again if it changed. True: it did. The old keys stay if it is bad."""
        if self._path is None:
            return False
        try:
            info = self._path.stat()
            stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
            if stamp == self._stamp:
                return False
            text = self._path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._field}: {self._path}: {error}") from None
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{self._field}: {self._path}: no key in it")
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._stamp = stamp
        return True

    def accept(self, key: bytes) -> bool:
        """Whether the key is one of ours."""
        digest = sha256(key).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """RequestError 401 unless `Authorization: Bearer` or `x-api-key` carries a key."""
        given = headers.get(b"authorization", b"").strip(b" \t")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() == b"bearer" and self.accept(token.strip(b" \t")):
            return
        token = headers.get(b"x-api-key", b"").strip(b" \t")
        if token and self.accept(token):
            return
        raise RequestError(401, "Incorrect API key provided.", code="invalid_api_key")


class Certificate:
    """The listener's TLS context. New handshakes use the files as they are on disk."""

    def __init__(self, listen: Listen) -> None:
        self._cert = Path(listen.tls_cert)
        self._key = Path(listen.tls_key or listen.tls_cert)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._stamp: tuple[int, int] | None = None
        self.reload()

    def reload(self) -> bool:
        """Load the files again if they changed. ConfigError: they do not fit together."""
        try:
            stamp = (self._cert.stat().st_mtime_ns, self._key.stat().st_mtime_ns)
            if stamp == self._stamp:
                return False
            # A scratch context first: a half-written pair must not spoil the live one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key)
            self.context.load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"listen.tls_cert: {self._cert}: {error}") from None
        self._stamp = stamp
        return True
