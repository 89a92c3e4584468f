"""Response heads of replicas: what the compiled `http_head` and `http_edit` know of them.

Without lines that end at this hop, the raw bytes pass as they are.
"""

from __future__ import annotations

from warmlane._core.http_edit import response_bytes
from warmlane._core.http_head import HeadError, ResponseHead, read_response

__all__ = ["BadAnswer", "ResponseHead", "read_response_head", "response_bytes"]


class BadAnswer(Exception):
    """A replica sent what is not HTTP/1. The connection cannot be used any more."""


def read_response_head(raw: bytes, to_head: bool) -> ResponseHead:
    """The head in `raw`, which answers a HEAD request when `to_head`. Raises BadAnswer when a
    replica sends what is not HTTP/1."""
    try:
        return read_response(raw, to_head)
    except HeadError as error:
        raise BadAnswer(error.args[1]) from None
