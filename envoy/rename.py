"""The name of the model that the client asked for, put back into an answer that comes in pieces.

`"model": "ENGINE'S"` becomes `"model": "CLIENT'S"`, wherever it stands as a member of JSON: inside
of a string the quotes would be escaped. What may be the beginning of it at the end of a piece is
held back until the next one, at most the length of the whole. All other bytes stay.
"""

from __future__ import annotations

import json
import re
from typing import Final

_KEY: Final = rb'"model"'
_BLANKS: Final = rb"[ \t]{0,4}"


class Rename:
    """One answer. engine, client: the two names."""

    def __init__(self, engine: str, client: str) -> None:
        old = json.dumps(engine, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self._new = json.dumps(client, ensure_ascii=False).encode("utf-8", "surrogatepass")
        steps = [re.escape(bytes((byte,))) for byte in _KEY]
        steps += [_BLANKS, b":", _BLANKS, *[re.escape(bytes((byte,))) for byte in old]]
        self._whole = re.compile(b"(" + b"".join(steps[: len(_KEY) + 3]) + b")" + re.escape(old))
        part = b""
        for step in reversed(steps[1:]):
            part = b"(?:" + step + part + b")?"
        self._part = re.compile(steps[0] + part + rb"\Z")
        self._most = len(_KEY) + 9 + len(old)
        self._held = b""

    def feed(self, piece: bytes, last: bool) -> bytes:
        """What of the answer can go on."""
        data = self._whole.sub(self._put, self._held + piece)
        self._held = b""
        if not last:
            found = self._part.search(data, max(0, len(data) - self._most))
            if found is not None:
                self._held, data = data[found.start() :], data[: found.start()]
        return data

    def _put(self, found: re.Match[bytes]) -> bytes:
        return found[1] + self._new
