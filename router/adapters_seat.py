"""What is known of one replica's LoRA adapters beside the engine's own list. Floor 3, values."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

FIRST_LOAD_S: Final = 0.3  # from disk for the first time, until loads tell


class Residency(StrEnum):
    """State of a pair; see the module."""

    ABSENT = "absent"
    LOADING = "loading"
    REGISTERED = "registered"
    ACTIVE = "active"


class Seat:
    """What is known of one slot's adapters beside the engine's own list."""

    __slots__ = (
        "busy",
        "failures",
        "load_s",
        "loading",
        "loads",
        "ours",
        "refused",
        "seen",
        "unloads",
    )

    def __init__(self) -> None:
        self.busy: dict[str, int] = {}  # open requests
        self.seen: dict[str, float] = {}  # last use
        self.ours: set[str] = set()  # loaded by this router, and not unloaded since
        self.loading: dict[str, float] = {}  # since when
        self.refused: dict[str, tuple[float, bool]] = {}  # until when; there is no such adapter
        self.load_s = FIRST_LOAD_S  # mean of its own
        self.loads = self.unloads = self.failures = 0
