"""`warmlane ext-proc`: the endpoint picker of Envoy-based gateways, and its way down.

    9002  external processing streams (and gRPC health), TLS unless --insecure
    9003  gRPC health, plaintext
    9090  /metrics, /healthz, /readyz, /admin/v1/...

Options, signals and drain that it shares with `serve` are in `router/command.py`. At SIGTERM health
turns NOT_SERVING at once; after --drain-delay-s the gateway is told to open no more streams.

Floor 8: joins the running router, the Envoy face and the admin interface.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import msgspec

from warmlane import __version__
from warmlane.envoy.server import PortTaken, Server, start_server
from warmlane.router import command
from warmlane.router.build import Running, build
from warmlane.router.command import BindError, Binding
from warmlane.router.config import Config
from warmlane.router.proxy.admin import Admin, is_loopback, start_admin

# Streams leave no reference cycles; a collection would walk over tens of thousands of open tickets.
_COLLECT_EVERY = (500_000, 20, 20)
_METRICS_PORT = 9090


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane ext-proc`. What is not given keeps the config file's value."""
    command.add_fleet(parser)
    option = command.adder(parser)
    option("--host", text="address of the gRPC ports (127.0.0.1)")
    option("--port", "--grpc-port", text="ext_proc port (9002)", type=int, metavar="PORT")
    option(
        "--health-port",
        "--grpc-health-port",
        text="health port (9003)",
        type=int,
        metavar="PORT",
    )
    option(
        "--metrics-host",
        text="address of metrics, and of admin where it is safe (127.0.0.1)",
        metavar="HOST",
    )
    option("--metrics-port", text="port of metrics and admin (9090)", type=int, metavar="PORT")
    option("--insecure", text="plaintext gRPC in place of TLS", action="store_true")
    option("--tls-cert", text="PEM certificate, watched; default: self-signed", metavar="FILE")
    option("--tls-key", text="PEM key of --tls-cert", metavar="FILE")
    option("--transport", text="gRPC transport (auto)", choices=["auto", "native", "grpcio"])
    option(
        "--response-level",
        text="0 requests only, 1 and the answer's headers and end, 2 and its body (1)",
        type=int,
        choices=[0, 1, 2],
    )
    option("--endpoints", text="one address, or the ordered list", choices=["one", "ordered"])
    option("--test-headers", text="obey the conformance suite's headers", action="store_true")
    option("--zap-encoder", text=argparse.SUPPRESS)  # of the Go pickers' manifests; no meaning here
    command.add_running(
        parser,
        watches="decide and report, change nothing",
        share="share of requests that are decided, the rest as with --shadow (1)",
    )


_SECTION = (
    "host",
    "port",
    "health_port",
    "insecure",
    "tls_cert",
    "tls_key",
    "transport",
    "response_level",
    "endpoints",
    "test_headers",
)


def config_from(args: argparse.Namespace) -> Config:
    """Config file with the flags laid over it. ConfigError: bad, or nowhere to route to."""
    given = vars(args)
    data = command.config_data(given, admin="metrics", follow_pool="replica" not in given)
    section = {name: given[name] for name in _SECTION if name in given}
    data["ext_proc"] = {**(data.get("ext_proc") or {}), **section}
    admin = dict(data.get("admin") or {})
    admin.setdefault("port", _METRICS_PORT)
    if not is_loopback(admin.get("host", "127.0.0.1")) and not admin.get("token_file"):
        admin.setdefault("metrics_only", True)  # Prometheus in a cluster asks from elsewhere
    data["admin"] = admin
    config = command.config_of(data, given)
    if "pool_name" in given and len(config.pools) == 1:
        pool = msgspec.structs.replace(config.pools[0], name=given["pool_name"])
        config = msgspec.structs.replace(config, pools=[pool])
    return config


class ExtProc:
    """Router, Envoy face and admin interface, all started. Made by `start`."""

    def __init__(self, running: Running, server: Server, admin: Admin) -> None:
        self.running = running
        self.server = server
        self.admin = admin

    @property
    def under_way(self) -> int:
        """Open streams."""
        return self.server.picker.open

    def reload_files(self) -> None:
        """Take a changed certificate into use; a bad one is reported and ignored."""
        self.server.reload_files()

    async def drain(self, delay_s: float = 0.0, timeout_s: float | None = None) -> bool:
        """Not ready at once; True: every stream ended by itself."""
        self.running.draining = True
        return await self.server.drain(delay_s, timeout_s)

    async def close(self) -> None:
        """Cut what is still under way and free everything."""
        self.running.draining = True
        await self.server.close()
        await self.running.close()
        await self.admin.close()


async def start(config: Config, reload: Callable[[], Config] | None = None) -> ExtProc:
    """The whole picker on the running loop. ConfigError; BindError.

    reload: gives the config to follow at POST /admin/v1/reload; default: the same one, which
    still reads key files again.
    """
    running = await build(config)
    running.metrics.version = __version__
    server: Server | None = None
    try:
        try:
            server = await start_server(running)
        except PortTaken as error:
            raise BindError(f"cannot listen on {error}") from error

        def again() -> list[str]:
            return running.reload(reload() if reload is not None else running.config)

        with Binding(config.admin.host, config.admin.port):
            admin = await start_admin(running, config, again)
    except BaseException:
        if server is not None:
            await server.close()
        await running.close()
        raise
    return ExtProc(running, server, admin)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. 0: stopped by one; 1: cannot listen; ConfigError: bad input."""
    config = config_from(args)
    return command.run("ext-proc", args.log_level, lambda: _serve(config, args))


async def _serve(config: Config, args: argparse.Namespace) -> None:
    def again() -> Config:
        return config_from(args)

    picker = await start(config, again)
    await command.until_signal(picker, banner(picker), again, args.drain_delay_s, _COLLECT_EVERY)


def banner(picker: ExtProc) -> str:
    """What the operator sees at start."""
    server, options = picker.server, picker.server.options
    assert server.transport is not None, "started"
    tls = "plaintext" if options.insecure else "TLS"
    return (
        f"warmlane {__version__} picks endpoints on {options.host}:{server.port}"
        f" ({tls}, {server.transport.name} transport)\n"
        f"  health on {options.host}:{server.health_port}\n"
        f"  admin and metrics on http://{picker.admin.host}:{picker.admin.port}\n"
        f"{command.replicas_line(picker.running)}"
    )


__all__ = ["BindError", "ExtProc", "add_arguments", "config_from", "run", "start"]
