"""Two real engines that publish events, started once for all modules that ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .vllm.fleet import Fleet, start_fleet


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    made = start_fleet()
    yield made
    made.close()
