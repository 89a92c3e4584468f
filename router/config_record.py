"""The section `record`: the router's own log of requests, for `warmlane replay`. Floor 2.

See docs/replay.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A log of requests without their text, for `warmlane replay`."""

    file: Annotated[
        str, Meta(description="where to; a name that ends in .gz is compressed; empty: no log")
    ] = ""
    max_bytes: Annotated[
        int, Meta(ge=65_536, description="size at which a file is closed and FILE.1 begins")
    ] = 268_435_456
    files: Annotated[
        int, Meta(ge=1, le=1000, description="files kept, the one that is written included")
    ] = 4
    queue: Annotated[
        int, Meta(ge=1, le=1_000_000, description="requests that wait to be written; more are lost")
    ] = 4096
