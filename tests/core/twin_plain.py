"""Plain-Python oracle of `_core.plain`: decodes the body, writes the canonical bytes, hashes."""

from __future__ import annotations

import json
from typing import Any

from tests.core import twin_hashing, twin_scan

# With one of these, whatever its value, a body is for the full way.
OTHERS = {"cache_salt", "kv_transfer_params", "ec_transfer_params", "n", "prompt_logprobs"}
MAIN = ("messages", "prompt", "input", "messages", "input", "")
Found = tuple[bytes, list[int], bytes, bool, bool, int]


def model_of(fields: dict[str, Any]) -> bytes:
    model = fields.get("model")
    return twin_scan.utf8(model) if isinstance(model, str) else b""


def keys_of(body: bytes, kind: int, root: int, block: int = 128) -> Found | None:
    """(model, keys, carry, several, stream, max_tokens), None when it is not plain."""
    found = twin_scan.scan(body, kind)
    if found is None or found.prompt is None:
        return None
    fields = json.loads(body)
    if OTHERS & set(fields) or MAIN[kind] not in fields:
        return None
    full = len(found.prompt) // block * block
    main = fields[MAIN[kind]]
    several = kind in (1, 4) and isinstance(main, list) and len(main) > 1
    most = -1 if found.max_tokens is None else found.max_tokens
    keys = twin_hashing.chain(root, found.prompt, block)
    return model_of(fields), keys, found.prompt[full:], several, found.stream, most
