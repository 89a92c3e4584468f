"""Words that both sides of the wire share: how bodies are framed, which header lines stay."""

from __future__ import annotations

from typing import Final

from warmlane._core.http_head import Framing

__all__ = ["CRLF", "END", "KEPT", "LAST_CHUNK", "Framing"]

CRLF: Final = b"\r\n"
END: Final = b"\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
# Names that a Connection header may not remove: they frame, address or authenticate the message.
KEPT: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization"})
