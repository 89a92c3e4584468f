"""Response heads of replicas: what the compiled `http_head` and `http_edit` know of them.

Without lines that end at this hop, the raw bytes pass as they are.
"""

from __future__ import annotations

from warmlane._core.http_edit import response_bytes
from warmlane._core.http_head import HeadError, ResponseHead, read_response

__all__ = ["BadAnswer", "ResponseHead", "ResponseReader", "response_bytes"]


class BadAnswer(Exception):
    """A replica sent what is not HTTP/1. The connection cannot be used any more."""


class ResponseReader:
    """Reads the heads of one connection to a replica. It keeps nothing between them."""

    __slots__ = ()

    def read(self, raw: bytes, to_head: bool) -> ResponseHead:
        """The head in `raw`. Raises BadAnswer when a replica sends what is not HTTP/1."""
        try:
            return read_response(raw, to_head)
        except HeadError as error:
            raise BadAnswer(error.args[1]) from None

    def skip_body(self, body: bytes) -> None:
        """Told of the bytes of a body; a reader that keeps no state has no use for them."""

    def reset(self) -> None:
        """An answer's body never came (HEAD): nothing to forget."""
