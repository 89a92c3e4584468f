"""`warmlane serve`: the running router with its two faces, and their way down. Floor 8.

Options, signals and drain that it shares with `ext-proc` are in `router/command.py`. A program that
wants the whole server inside its own loop uses `start(config)` and `Server.close`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
from collections.abc import Callable

from warmlane import __version__
from warmlane.router import command
from warmlane.router.build import Running, build
from warmlane.router.command import BindError, Binding, bracketed
from warmlane.router.config import Config
from warmlane.router.config_load import with_flags
from warmlane.router.proxy.admin import Admin, start_admin
from warmlane.router.proxy.server import Proxy, start_proxy
from warmlane.router.shadow import Shadow

log = logging.getLogger("warmlane")

# Requests leave no reference cycles (tests/proxy/test_garbage.py): what little garbage there is
# comes from connections and scrapes. Collecting it every 700 allocations would only walk over the
# requests under way again and again.
_COLLECT_EVERY = (50_000, 20, 20)
_MAX_FILES = 262_144  # two sockets a request at many times limits.connections


class Server:
    """Router, proxy and admin interface, all started. Made by `start`."""

    def __init__(self, running: Running, proxy: Proxy, admin: Admin) -> None:
        self.running = running
        self.proxy = proxy
        self.admin = admin
        self.router = running.router

    @property
    def url(self) -> str:
        """Where clients connect."""
        listen = self.running.config.listen
        scheme = "https" if listen.tls_cert else "http"
        return f"{scheme}://{bracketed(listen.host)}:{self.proxy.port}"

    @property
    def admin_url(self) -> str:
        return f"http://{bracketed(self.admin.host)}:{self.admin.port}"

    @property
    def under_way(self) -> int:
        """Requests under way."""
        return self.proxy.inflight

    def reload_files(self) -> None:
        """Take changed certificates and keys into use; a bad one is reported and ignored."""
        self.proxy.reload_files()

    async def drain(self, delay_s: float = 0.0, timeout_s: float | None = None) -> bool:
        """Not ready at once; after `delay_s` no new connections. True: every request ended."""
        self.running.draining = True
        await asyncio.sleep(delay_s)
        limit_s = self.running.config.timeouts.drain_s if timeout_s is None else timeout_s
        return await self.proxy.drain(limit_s)

    async def close(self) -> None:
        """Cut what is still under way and free everything."""
        self.running.draining = True
        await self.proxy.close()
        await self.running.close()
        await self.admin.close()


async def start(config: Config, reload: Callable[[], Config] | None = None) -> Server:
    """The whole server on the running loop. ConfigError; BindError.

    reload: gives the config to follow at POST /admin/v1/reload; default: the same one, which
    still reads key files again.
    """
    running = await build(config)
    running.metrics.version = __version__
    proxy: Proxy | None = None
    try:
        with Binding(config.listen.host, config.listen.port):
            proxy = await start_proxy(running.router, config)
        running.followers.append(proxy.state.follow)
        proxy.state.tokens = running.feeds.tokens
        proxy.state.adapters = running.feeds.adapters
        running.shadow = proxy.state.shadow = Shadow(running.router, config.shadow)

        def again() -> list[str]:
            return running.reload(reload() if reload is not None else running.config)

        with Binding(config.admin.host, config.admin.port):
            admin = await start_admin(running, config, again)
    except BaseException:
        if proxy is not None:
            await proxy.close()
        await running.close()
        raise
    return Server(running, proxy, admin)


# The command --------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane serve`. What is not given keeps the config file's value."""
    command.add_fleet(parser)
    option = command.adder(parser)
    option("--host", text="address for clients (127.0.0.1)")
    option("--port", text="port for clients, 0 takes a free one (8080)", type=int)
    option("--admin-host", text="address of /metrics, /readyz, /admin (127.0.0.1)", metavar="HOST")
    option(
        "--admin-port",
        text="port of the same, 0 takes a free one (8081)",
        type=int,
        metavar="PORT",
    )
    option("--api-key-file", text="keys that clients must show, one per line", metavar="FILE")
    option(
        "--debug-headers", text="answer with x-warmlane-* headers to everybody", action="store_true"
    )
    command.add_running(
        parser,
        watches="choose by least in-flight (shadow.baseline) and report what the policy would have"
        " chosen",
        share="share of requests that the policy decides (1)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. 0: stopped by a signal; 1: cannot listen; ConfigError: bad input."""
    config = config_from(args)
    return command.run("serve", args.log_level, lambda: _serve(config, args))


def config_from(args: argparse.Namespace) -> Config:
    """Config file with the flags laid over it. ConfigError: bad, or nowhere to route to."""
    given = vars(args)
    data = with_flags(
        command.config_data(given, admin="admin"),
        host=given.get("host"),
        port=given.get("port"),
        api_key_file=given.get("api_key_file"),
    )
    if "debug_headers" in given:
        data["debug_headers"] = given["debug_headers"]
    return command.config_of(data, given)


def _raise_file_limit() -> None:
    """As many open sockets as the system allows without asking: the usual 1,024 are soon used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.debug("event=file_limit before=%d now=%d", soft, wanted)


async def _serve(config: Config, args: argparse.Namespace) -> None:
    def again() -> Config:
        return config_from(args)

    _raise_file_limit()
    server = await start(config, again)
    await command.until_signal(server, banner(server), again, args.drain_delay_s, _COLLECT_EVERY)


def banner(server: Server) -> str:
    """What the operator sees at start: addresses, and what to try."""
    key = "-H 'Authorization: Bearer KEY' " if server.running.config.listen.api_key_file else ""
    insecure = "-k " if server.url.startswith("https") else ""
    return (
        f"warmlane {__version__} listens on {server.url}\n"
        f"  admin and metrics on {server.admin_url}\n"
        f"{command.replicas_line(server.running)}"
        f"try\n"
        f"  curl {insecure}{key}{server.url}/v1/models\n"
        f"  curl {server.admin_url}/admin/v1/replicas\n"
    )


__all__ = ["BindError", "Server", "add_arguments", "config_from", "run", "start"]
