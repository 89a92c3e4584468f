"""The HTTP client of scrapes, probes and other engine calls: one session, bounded answers, keys.

Never logs a key and never follows a redirect (a redirect would carry the engine's key to wherever
it points).
"""

from __future__ import annotations

import os
from pathlib import Path

import aiohttp

from warmlane.router.errors import ConfigError

_CHUNK = 65_536


class EngineError(Exception):
    """An engine call failed; the message is one line for the log. `status` is 0 without answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def open_session(keepalive_s: float) -> aiohttp.ClientSession:
    """The shared session. Must be made inside a running loop and closed by its owner.

    keepalive_s must be below the engines' idle time-out (vLLM: 5 s). Compression is refused: it
    would cost the engine a millisecond of the interpreter that also schedules its steps.
    """
    # No limit on connections: waiting for a free one would count against a healthy replica's
    # time-out while dead ones hold theirs. A probe and a scrape per replica are the bound.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_s)
    return aiohttp.ClientSession(
        connector=connector,
        headers={"User-Agent": "warmlane", "Accept-Encoding": "identity"},
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    *,
    headers: dict[str, str],
    timeout_s: float,
    max_bytes: int,
    data: bytes | None = None,
) -> tuple[int, bytes]:
    """(status, body) of one GET, or of a POST of JSON `data`.

    EngineError: no answer in time, or one over max_bytes.
    """
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    method = "GET" if data is None else "POST"
    if data is not None:
        headers = {**headers, "Content-Type": "application/json"}
    try:
        async with session.request(
            method, url, headers=headers, data=data, timeout=timeout, allow_redirects=False
        ) as response:
            parts = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                parts += chunk
                if len(parts) > max_bytes:
                    raise EngineError(f"answer over {max_bytes} bytes", response.status)
            return response.status, bytes(parts)
    except TimeoutError as error:
        raise EngineError(f"no answer in {timeout_s:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise EngineError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def read_keys(path: str, where: str) -> list[str]:
    """Keys of a file, one per line; empty lines and lines that begin with # do not count.

    ConfigError: unreadable, without any key, or a key that cannot stand in a header.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {path}: cannot be read: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{where}: {path}: no key in it")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ConfigError(f"{where}: {path}: a key must be printable ASCII without blanks")
    return keys


def engine_headers(key_file: str, key_env: str, where: str) -> dict[str, str]:
    """Authorization header for a pool's engines out of a file or an environment variable.

    {} when neither is configured. ConfigError: configured but not there.
    """
    if key_file:
        return {"Authorization": f"Bearer {read_keys(key_file, f'{where}.engine_api_key_file')[0]}"}
    if key_env:
        key = os.environ.get(key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"{where}.engine_api_key_env: no usable key in the environment variable {key_env}"
            )
        return {"Authorization": f"Bearer {key}"}
    return {}
