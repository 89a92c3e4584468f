"""A stream whose request waits: in the router's queue, for token ids, or for an adapter's load.

Base of `Choice`. What the gateway says meanwhile is kept by `Session`, and taken once the choice is
made. A stream that goes cancels what its request waits for (`_core.proc_course`).
"""

from __future__ import annotations

from abc import abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from warmlane.envoy.reply import CANCELLED, Reply
from warmlane.router.admission_line import Told, Waiting
from warmlane.router.errors import RouterError
from warmlane.router.types import Decision, Request

if TYPE_CHECKING:
    from warmlane.router.admission import Gate
    from warmlane.router.lane import Prepared
    from warmlane.router.pool import Pool

# Phases of the request half, with those of `choice`.
BODY: Final = 1  # headers seen, the choice waits for the body
WAITING: Final = 2  # for the prompt's token ids, room, or a load; the request is whole


class Queued(Reply):
    """See the module."""

    __slots__ = ()

    @abstractmethod
    def _chosen(self) -> None:
        """The choice that messages waited for is made."""

    @abstractmethod
    def _decided(self, pool: Pool, request: Request, out: bytes, how: Any) -> None:
        """A replica is chosen."""

    @abstractmethod
    def _not_chosen(self, error: RouterError, how: Any) -> None:
        """Nobody can be chosen."""

    def _await(self, body: bytes) -> None:
        """Nothing is answered until `_waiting` ends."""
        self._phase, self._late = WAITING, self._late or []
        if not self._held:  # a body that came in one message is held from now on
            self._held = len(body)
            self._picker.buffered += self._held

    def _offer(
        self, gate: Gate, prepared: Prepared, now: float, rand: int, told: Told, body: bytes
    ) -> Decision | None:
        """Past saturation: the decision, or None while it waits. Raises NoReplica."""
        found = gate.offer(prepared, now, rand, told, len(body))
        if isinstance(found, Waiting):
            self._waiting = found
            self._await(body)
            return None
        return found

    def _admitted(
        self, pool: Pool, request: Request, out: bytes, how: Any, what: Decision | RouterError
    ) -> None:
        """The end of a wait in the router's queue."""
        self._waiting = None
        if self.status is not None:  # the stream ended itself meanwhile
            if isinstance(what, Decision):
                self._picker.router.close(what.ticket, CANCELLED, monotonic())
            return
        self._phase = BODY
        try:
            if isinstance(what, Decision):
                self._decision, self._slot, self._open = what, what.choices[0], True
                self._decided(pool, request, out, how)
            else:
                self._not_chosen(what, how)
            self._chosen()
        except Exception:  # noqa: BLE001 - as in `receive`
            self._crashed()
        assert self._wake is not None, "the stream is open"
        self._wake()
