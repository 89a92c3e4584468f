"""The gRPC health service (grpc.health.v1), as gateways and kubelets probe it.

Four names: "" and "readiness" and the ext_proc service tell whether streams may be sent here,
"liveness" whether the process should live; "inference-extension" is what older manifests ask for.
NOT_SERVING while draining, and but for liveness while this process is a stand-by. An empty pool is
served: its requests get a 503 that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from warmlane.envoy.streams import INVALID_ARGUMENT, OK, Methods, Wake

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
LIVENESS: Final = "liveness"
NAMES: Final = ("", LIVENESS, "readiness", SERVICE, "inference-extension")


class Serving(IntEnum):
    """HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class Health:
    """Status by name, and those who watch it. `draining` and `standby` are set by the server."""

    def __init__(self) -> None:
        self._draining = False
        self._standby = False
        self._watchers: set[Watch] = set()

    def set(self, *, draining: bool | None = None, standby: bool | None = None) -> None:
        """Take news; watchers hear of it."""
        self._draining = self._draining if draining is None else draining
        self._standby = self._standby if standby is None else standby
        for watcher in list(self._watchers):
            watcher.look()

    @property
    def standby(self) -> bool:
        """Another picker decides, or nothing is known of the replicas yet."""
        return self._standby

    def status(self, name: str) -> Serving:
        if name not in NAMES:
            return Serving.SERVICE_UNKNOWN
        if self._draining or (self._standby and name != LIVENESS):
            return Serving.NOT_SERVING
        return Serving.SERVING

    def watch(self, watcher: Watch) -> None:
        self._watchers.add(watcher)

    def unwatch(self, watcher: Watch) -> None:
        self._watchers.discard(watcher)

    def methods(self) -> Methods:
        """The service's method table."""
        return {
            "/grpc.health.v1.Health/Check": lambda _: Check(self._check),
            "/grpc.health.v1.Health/List": lambda _: Check(self._list),
            "/grpc.health.v1.Health/Watch": lambda wake: Watch(self, wake),
        }

    def _check(self, message: bytes) -> bytes:
        return response(self.status(service_of(message)))

    def _list(self, message: bytes) -> bytes:
        del message
        found = []
        for name in NAMES:
            value = response(self.status(name))
            entry = _text(1, name.encode()) + _text(2, value)
            found.append(_text(1, entry))
        return b"".join(found)


class Check:
    """A call with one message each way."""

    def __init__(self, reply: Callable[[bytes], bytes]) -> None:
        self.status: tuple[int, str] | None = None
        self._reply = reply
        self._out: list[bytes] = []

    def receive(self, message: bytes) -> None:
        if self.status is not None:
            return
        try:
            self._out.append(self._reply(message))
            self.status = (OK, "")
        except ValueError as error:
            self.status = (INVALID_ARGUMENT, str(error))

    def half_closed(self) -> None:
        if self.status is None:
            self.status = (INVALID_ARGUMENT, "a request message is missing")

    def closed(self) -> None:
        """Nothing is held."""

    def take(self) -> list[bytes]:
        out, self._out = self._out, []
        return out


class Watch:
    """A call that hears each change until its client leaves."""

    def __init__(self, health: Health, wake: Wake) -> None:
        self.status: tuple[int, str] | None = None
        self._health = health
        self._wake = wake
        self._name: str | None = None
        self._told: Serving | None = None
        self._out: list[bytes] = []

    def receive(self, message: bytes) -> None:
        if self._name is not None or self.status is not None:
            return
        try:
            self._name = service_of(message)
        except ValueError as error:
            self.status = (INVALID_ARGUMENT, str(error))
            return
        self._note()
        self._health.watch(self)

    def half_closed(self) -> None:
        """A watcher sends one message and listens: nothing ends."""

    def closed(self) -> None:
        self._health.unwatch(self)

    def take(self) -> list[bytes]:
        out, self._out = self._out, []
        return out

    def look(self) -> None:
        """Something may have changed."""
        if self._note():
            self._wake()

    def _note(self) -> bool:
        assert self._name is not None, "registered with a name"
        now = self._health.status(self._name)
        if now == self._told:
            return False
        self._told = now
        self._out.append(response(now))
        return True


def response(status: Serving) -> bytes:
    """HealthCheckResponse."""
    return b"\x08" + bytes((status,))


def service_of(message: bytes) -> str:
    """`service` of a HealthCheckRequest, its only field. ValueError: it is not one."""
    if not message:
        return ""
    if len(message) < 2 or message[0] != 0x0A or message[1] > 127 or len(message) != 2 + message[1]:
        raise ValueError("malformed HealthCheckRequest")
    return message[2:].decode("utf-8", "replace")


def _text(number: int, content: bytes) -> bytes:
    assert len(content) < 128, "names are short"
    return bytes((number << 3 | 2, len(content))) + content
