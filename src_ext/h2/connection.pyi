"""Types of the compiled module; contract in connection.pxd, meaning in connection.pyx."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from warmlane._core.h2.session import Session
from warmlane._core.h2.streams import Shared

class Connection(Session, asyncio.Protocol):
    def __init__(
        self,
        shared: Shared,
        methods: Mapping[bytes, Callable[[Callable[[], None]], Any]],
        on_error: Callable[[BaseException], None],
        on_made: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None: ...
    def tick(self, now_s: float) -> None: ...
    def drain(self) -> None: ...
    def drain_now(self) -> None: ...
    def abort(self) -> None: ...
    @property
    def open_streams(self) -> int: ...

def library_version() -> str: ...
