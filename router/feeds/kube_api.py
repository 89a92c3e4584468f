"""Requests to the Kubernetes API server: get, list in pages, watch, create and replace.

One session per `KubeApi`. Failures are `ApiError` with the status and the server's Retry-After;
no retry here but one: a 401 is tried again with a token read anew. Answers are bounded, redirects
are not followed (they would carry the token away). Protocol: Kubernetes API concepts, "efficient
detection of changes" and "retrieving large results in chunks".
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType

import aiohttp
import msgspec

from warmlane.router.feeds.kube_access import Access, Denied

_ANSWER_S = 30.0  # a list of 500 pods takes an API server far below a second
_CONNECT_S = 5.0
_MAX_ANSWER = 67_108_864  # 500 objects at etcd's limit of 1.5 MB never come near in practice
MAX_LINE = 8_388_608  # one watch event; etcd holds objects of at most 1.5 MB
_CHUNK = 65_536
_LOOK_S = 1.0  # between two looks at a silent connection
_MESSAGE = 200  # characters of a server's message that the log repeats
_BREAKS = re.compile(r"[\s\"]+")
# A peer that vanished without a word is noticed after about 10 + 3 * 5 s.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class ApiError(Exception):
    """A call failed. status: HTTP or Status code, 0 without an answer. Message: one line."""

    def __init__(self, message: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class _Status(msgspec.Struct):
    """metav1.Status, as far as it tells why."""

    message: str = ""
    reason: str = ""
    code: int = 0


_status = msgspec.json.Decoder(_Status)


class KubeApi:
    """An async context manager: the session lives inside it."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> KubeApi:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": "warmlane", "Accept": "application/json"},
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_CHUNK,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body of one GET. Raises ApiError."""
        return await self.call("GET", path, query=query)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> bytes:
        """The body of a 2xx answer. Raises ApiError."""
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S, connect=_CONNECT_S)
        async with self._open(method, path, query or {}, timeout, body) as response:
            return await _whole(response)

    async def watch(
        self, path: str, query: Mapping[str, str], silent_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Lines of a watch until the server ends it; what comes after the last newline is cut.

        silent_s: longest time without a byte. Raises ApiError.
        """
        limits = aiohttp.ClientTimeout(total=None, connect=_CONNECT_S)
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_ANSWER_S):  # the head comes at once, events may not
                    opened = self._open("GET", path, query, limits, None)
                    response = await stack.enter_async_context(opened)
            except TimeoutError as error:
                raise ApiError("no answer in time") from error
            _keep_alive(response)
            rest = bytearray()
            while chunk := await _next(response, silent_s):
                start = 0
                while (end := chunk.find(b"\n", start)) >= 0:
                    rest += chunk[start:end]
                    start = end + 1
                    if rest.strip():
                        yield bytes(rest)
                    rest.clear()
                rest += chunk[start:]
                if len(rest) > MAX_LINE:
                    raise ApiError(f"an event over {MAX_LINE} bytes")

    @contextlib.asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        body: bytes | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "use it inside `async with`"
        try:
            for again in (False, True):
                token = await self.access.token(again=again)
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                if body is not None:
                    headers["Content-Type"] = "application/json"
                async with self._session.request(
                    method,
                    self.access.server + path,
                    params=dict(query),
                    headers=headers,
                    data=body,
                    timeout=limits,
                    allow_redirects=False,
                    ssl=self.access.tls(),
                ) as response:
                    if response.status == 401 and not again:
                        continue
                    if not 200 <= response.status < 300:
                        raise await _refusal(response)
                    yield response
                    return
        except Denied as error:
            raise ApiError(str(error), 401) from error
        except TimeoutError as error:
            raise ApiError("no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def error_of(body: bytes) -> ApiError:
    """The error that a Status object tells, as in an ERROR event of a watch."""
    status = _decoded(body)
    return ApiError(_line(status.message or status.reason or "error"), status.code)


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    try:
        status = _decoded(await _whole(response))
    except ApiError:
        status = _Status()
    why = _line(status.message or status.reason or response.reason or "")
    after = response.headers.get("Retry-After", "")
    return ApiError(
        f"status {response.status}: {why}",
        response.status,
        float(after) if after.isdigit() else None,
    )


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    parts = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        parts += chunk
        if len(parts) > _MAX_ANSWER:
            raise ApiError(f"answer over {_MAX_ANSWER} bytes", response.status)
    return bytes(parts)


def _decoded(body: bytes) -> _Status:
    try:
        return _status.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return _Status()


def _line(text: str) -> str:
    return _BREAKS.sub(" ", text)[:_MESSAGE]


async def _next(response: aiohttp.ClientResponse, silent_s: float) -> bytes:
    """The next bytes of a stream, b"" at its end. TimeoutError after silent_s without any.

    Looks at the connection now and then: after a fault in the chunk framing aiohttp 3.14 closes it
    and leaves the reader waiting.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + silent_s
    while True:
        try:
            async with asyncio.timeout(_LOOK_S):
                return await response.content.readany()
        except TimeoutError:
            connection = response.connection
            transport = None if connection is None else connection.transport
            if transport is None or transport.is_closing():
                raise ApiError("the connection is gone") from None
            if loop.time() > end:
                raise


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    connection = response.connection
    transport = None if connection is None else connection.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None:
        return
    for level, option, value in _KEEPALIVE:
        sock.setsockopt(level, option, value)
