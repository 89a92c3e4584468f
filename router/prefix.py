"""Request -> prefix key: the chain of block keys that says which cached prefix would serve it.

Owns the choice of unit (text blocks or token blocks) and the bytes that a generated answer adds
when the next turn sends it back. Never decodes JSON: `requests.parse` did. docs/hashing.md has the
grammar. Cost: 0.3 us plus 7 ns for each 128-byte block of text.
"""

from __future__ import annotations

import msgspec

from warmlane._core.hashing import (
    KeyArray,
    root_key,
    text_keys,
    text_keys_extend,
    token_keys,
)
from warmlane._core.scan import PROMPT_CAP
from warmlane.router.types import Kind, Request

# The next turn sends the answer as this message (markers of json_text.h: message, content).
ASSISTANT_TURN = b"\xffassistant\xfe"
# Between the prompts of one request (json_text.h, WL_NEXT).
NEXT_PROMPT = b"\xf5"
CHATS = frozenset({Kind.CHAT, Kind.RESPONSES, Kind.MESSAGES})


class PrefixKey(msgspec.Struct, frozen=True, gc=False):
    """The keys of a prompt's full blocks.

    unit: "text", "tokens", or "none" (no prompt: routed by load; no keys).
    size: length of the whole prompt in bytes (text) or tokens. block: length of a block, same unit.
    root: parent of the first block, from model, adapter and salt.
    """

    keys: KeyArray
    unit: str
    size: int
    block: int
    root: int


NO_KEYS = text_keys(1, b"")
# Deep enough to tell apart what begins with the same system prompt, and early enough that all turns
# of a conversation share it (docs/share.md has the comparison).
HEAD_BYTES = 8192
HEAD_TOKENS = 2048

NO_PREFIX = PrefixKey(NO_KEYS, "none", 0, 0, 0)


def prefix_key(
    request: Request, model: str, adapter: str, *, block_bytes: int, block_tokens: int
) -> PrefixKey:
    """The prefix key of a request for a model (as the engine knows it) and adapter ("" for none).

    block_bytes: 1 to 232, for text; block_tokens: for prompts of token ids. A text prompt whose
    ids are known too keeps its text key: the ids are for the exact view.
    """
    tokens = request.tokens
    if tokens is not None and request.prompt is None:
        root = root_key(model, adapter, request.salt)
        keys = token_keys(root, tokens, block_tokens)
        return PrefixKey(keys, "tokens", len(tokens) >> 2, block_tokens, root)
    prompt = request.prompt
    if prompt is None:
        return NO_PREFIX
    root = root_key(model, adapter, request.salt)
    return PrefixKey(text_keys(root, prompt, block_bytes), "text", len(prompt), block_bytes, root)


def head_key(key: PrefixKey, rand: int) -> int:
    """What stands for the prompt's head: the key of the block at 8 KB or 2,048 tokens, of a shorter
    one's last block; `rand` where there is none."""
    if not len(key.keys):
        return rand
    depth = (HEAD_BYTES if key.unit == "text" else HEAD_TOKENS) // key.block
    return key.keys[min(len(key.keys), max(depth, 1)) - 1]


def next_turn(request: Request, key: PrefixKey, text: bytes) -> KeyArray:
    """The keys of the prompt as the next turn will send it: prompt, then the generated text.

    Returns `key.keys` unchanged where no next turn can be foretold: no text, token ids (the answer
    came as text), several prompts in one request, embeddings, a prompt cut at the cap.
    """
    prompt = request.prompt
    if not text or key.unit != "text" or prompt is None or len(prompt) >= PROMPT_CAP:
        return key.keys
    if request.kind in CHATS:
        text = ASSISTANT_TURN + text
    elif request.kind is not Kind.COMPLETIONS or NEXT_PROMPT in prompt:
        return key.keys
    carry = prompt[len(key.keys) * key.block :]
    return text_keys_extend(key.keys, key.root, carry, text, key.block)
