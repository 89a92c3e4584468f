"""The server's certificate: given files, watched, or a self-signed one made at start.

Gateways speak TLS to an endpoint picker and do not verify it (Envoy AI Gateway, GKE): a self-signed
certificate encrypts, and proves nothing. Its key never touches a disk but for a moment, since
OpenSSL's context loads files alone.
"""

from __future__ import annotations

import datetime
import ssl
import tempfile
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from warmlane.router.config_envoy import ExtProc
from warmlane.router.errors import ConfigError

_DAYS = 3650  # the certificate lives as long as the process, which must not end with it


class Tls:
    """Certificate and key, as both transports want them. `context` stays the same object."""

    def __init__(self, options: ExtProc) -> None:
        self._cert = Path(options.tls_cert) if options.tls_cert else None
        self._key = Path(options.tls_key or options.tls_cert)
        self._stamp: tuple[int, int] | None = None
        self.pair: tuple[bytes, bytes] = (b"", b"")  # key, certificate chain; PEM
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["h2"])
        if self._cert is None:
            self.pair = self_signed()
            with tempfile.TemporaryDirectory(prefix="warmlane-") as folder:
                path = Path(folder) / "pair.pem"
                path.touch(mode=0o600)
                path.write_bytes(b"".join(self.pair))
                self.context.load_cert_chain(path)
        else:
            self.reload()

    def reload(self) -> bool:
        """Read the files again if they changed. ConfigError: they do not fit; the old ones stay."""
        if self._cert is None:
            return False
        try:
            stamp = (self._cert.stat().st_mtime_ns, self._key.stat().st_mtime_ns)
            if stamp == self._stamp:
                return False
            # A scratch context first: a half-written pair must not spoil the live one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key)
            self.context.load_cert_chain(self._cert, self._key)
            self.pair = (self._key.read_bytes(), self._cert.read_bytes())
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ext_proc.tls_cert: {self._cert}: {error}") from None
        self._stamp = stamp
        return True

    def grpc_credentials(self) -> Any:
        """For grpcio: each new handshake asks for the pair as it is then."""
        return grpc.dynamic_ssl_server_credentials(self._configuration(), self._configuration)

    def _configuration(self) -> Any:
        return grpc.ssl_server_certificate_configuration([self.pair])


def self_signed() -> tuple[bytes, bytes]:
    """(key, certificate) in PEM: P-256, for nobody in particular."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "warmlane")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return (
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.public_bytes(pem),
    )
