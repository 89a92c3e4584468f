"""An HTTP front that passes everything to a fake engine but for the lies it is told to tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

Edit = Callable[[int, bytes], tuple[int, bytes]]


class Liar:
    """`async with Liar(engine.url) as liar:`; `edits[path]` changes status and body.

    date: the date header of its answers, None as it is.
    """

    def __init__(self, url: str) -> None:
        self.behind = url
        self.edits: dict[str, Edit] = {}
        self.date: str | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Liar:
        self._session = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass(self, request: web.Request) -> web.Response:
        data = await request.read()
        headers = {
            name: request.headers[name]
            for name in ("authorization", "content-type")
            if name in request.headers
        }
        async with self._session.request(
            request.method, self.behind + request.path_qs, data=data or None, headers=headers
        ) as answer:
            status, body = answer.status, await answer.read()
        edit = self.edits.get(request.path)
        if edit is not None:
            status, body = edit(status, body)
        response = web.Response(status=status, body=body)
        if self.date is not None:
            response.headers["Date"] = self.date
        return response


def replaced(old: bytes, new: bytes) -> Edit:
    """Replace bytes, which must be there."""

    def edit(status: int, body: bytes) -> tuple[int, bytes]:
        assert old in body, f"{old!r} is not in {body[:200]!r}"
        return status, body.replace(old, new)

    return edit


def answered(status: int, body: Any = None) -> Edit:
    """Another answer."""
    return lambda *_: (status, json.dumps(body or {}).encode())


def edited(change: Callable[[Any], None]) -> Edit:
    """Change the JSON in place."""

    def edit(status: int, body: bytes) -> tuple[int, bytes]:
        data = json.loads(body)
        change(data)
        return status, json.dumps(data).encode()

    return edit
