"""What aiohttp has to say of the admin port, in our log. Floor 7."""

from __future__ import annotations

import logging
from typing import Any

from aiohttp.http_exceptions import HttpProcessingError


class PeerLog(logging.LoggerAdapter[logging.Logger]):
    """A peer that speaks no HTTP is one line at debug, without the bytes that it sent.

    aiohttp tells of it as of a bug, with a trace and those bytes: anybody could fill the log.
    """

    def exception(self, msg: object, *args: object, exc_info: Any = True, **more: Any) -> None:
        if isinstance(exc_info, HttpProcessingError):
            self.debug("event=bad_admin_request what=%s", type(exc_info).__name__)
        else:
            super().exception(msg, *args, exc_info=exc_info, **more)
