"""Words that both sides of the wire share: how bodies are framed, which header lines stay.

Heads are edited as lists of lines. That is exact because llhttp (strict) and the checks of
`request_head` and `response_head` refuse every head in which a line is not one header.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

CRLF: Final = b"\r\n"
END: Final = b"\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
# Names that a Connection header may not remove: they frame, address or authenticate the message.
KEPT: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization"})
# Protocol versions spoken here; True: HTTP/1.0.
VERSIONS: Final = {b"HTTP/1.1": False, b"HTTP/1.0": True}


class Framing(IntEnum):
    """How the end of a message's body is found."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3  # until the peer closes: answers of HTTP/1.0 servers only


def listed_names(tokens: frozenset[bytes]) -> frozenset[bytes]:
    """Header names among the tokens of a Connection header: they end at this hop."""
    return tokens - KEPT - {b"close", b"keep-alive", b""}


def tokens_of(value: bytes) -> frozenset[bytes]:
    """Lower-case tokens of a Connection header."""
    return frozenset([token.strip(b" \t") for token in value.lower().split(b",")])


def cut_lines(lines: list[bytes], drop: list[int], names: frozenset[bytes]) -> None:
    """Remove the lines with these numbers, and those with these header names (lower case)."""
    if names:
        drop = drop + [
            index
            for index, line in enumerate(lines)
            if index and index not in drop and line.partition(b":")[0].lower() in names
        ]
    for index in sorted(drop, reverse=True):
        del lines[index]
