"""The baseline: the reverse proxy that one writes with aiohttp in an afternoon, round robin.

Both sides keep connections alive, an answer of known length is relayed whole and a stream as it
comes, access logs are off. It parses no body and decides nothing. The bars are set against aiohttp
on asyncio's own event loop, as it comes; on uvloop it is shown beside.

    python benchmarks/peers/aiohttp_proxy.py asyncio|uvloop PORT REPLICA_URL [REPLICA_URL ...]
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Iterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}
SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)
TURN: web.AppKey[Iterator[str]] = web.AppKey("turn")


async def relay(request: web.Request) -> web.StreamResponse:
    url = next(request.app[TURN]) + request.raw_path
    headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP]
    body = await request.read()
    async with request.app[SESSION].request(
        request.method, url, headers=headers, data=body, allow_redirects=False
    ) as answer:
        kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in HOP]
        if answer.content_length is not None:
            whole = await answer.read()
            return web.Response(status=answer.status, body=whole, headers=dict(kept))
        out = web.StreamResponse(status=answer.status, headers=dict(kept))
        await out.prepare(request)
        async for chunk in answer.content.iter_any():
            await out.write(chunk)
        await out.write_eof()
        return out


async def serve(port: int, replicas: list[str]) -> None:
    app = web.Application(client_max_size=1 << 26)

    async def session(app: web.Application) -> AsyncIterator[None]:
        connector = TCPConnector(limit=0, keepalive_timeout=60)
        timeout = ClientTimeout(total=60)
        app[SESSION] = ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        yield
        await app[SESSION].close()

    app[TURN] = itertools.cycle(replicas)
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", relay)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    run = uvloop.run if sys.argv[1] == "uvloop" else asyncio.run
    run(serve(int(sys.argv[2]), sys.argv[3:]))
