"""Which transports of the picker the tests of this folder run on: every one that is built."""

from __future__ import annotations

import pytest

from .stage import BUILT


@pytest.fixture(params=BUILT)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)
