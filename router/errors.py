"""Errors of the router. The three children say who must act; a bug is an AssertionError."""

from __future__ import annotations


class RouterError(Exception):
    """Base of every error that warmlane raises on purpose."""


class ConfigError(RouterError):
    """The operator must act. The message names the field (dotted path) and the value."""


class RequestError(RouterError):
    """The client must act: the request is refused with an HTTP status.

    `kind` is the OpenAI error `type`, `param` the offending top-level field or None, `code` a
    stable word for programs (default: none).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code


class NoReplica(RouterError):
    """No replica may serve the request now. Status 503 (none eligible) or 429 (all saturated).

    `removed` says how many replicas each filter took away, in filter order; `retry_after_s` is
    the advice for the client, `code` a stable word for programs (default: the status).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 503,
        removed: dict[str, int] | None = None,
        retry_after_s: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.removed = removed or {}
        self.retry_after_s = retry_after_s
        self.code = code
