"""One stream of a picker without a transport: what goes in, and the answers to it."""

from __future__ import annotations

from tests.envoy.gateway import Answer
from warmlane.envoy.picker import Picker
from warmlane.envoy.session import Session


class Talk:
    """woken: how often the stream asked to be written."""

    def __init__(self, picker: Picker) -> None:
        self.picker = picker
        self.woken = 0
        self.session = Session(picker, self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def say(self, *messages: bytes) -> list[Answer]:
        for message in messages:
            self.session.receive(message)
        return self.hear()

    def hear(self) -> list[Answer]:
        return [Answer(raw) for raw in self.session.take()]

    def end(self) -> None:
        self.session.half_closed()
        self.session.closed()
