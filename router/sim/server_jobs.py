"""Request bodies of the fake engine -> prompts as token ids, checked with vLLM's error answers."""

from __future__ import annotations

import hashlib
from array import array
from typing import Any

import msgspec

from warmlane.router.sim.tokens import render_chat, tokenize


class Refusal(Exception):
    """The request is answered with an error; `kind` and `param` as vLLM words them."""

    def __init__(
        self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param


def decode_body(body: bytes) -> dict[str, Any]:
    """JSON object of a body. Refusal 400 in vLLM's words for a validation error."""
    if not body:
        detail = "{'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}"
        raise Refusal(400, f"1 validation error:\n  {detail}", "Bad Request", "body")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = f"1 validation error:\n  JSON decode error: {error}"
        raise Refusal(400, text, "Bad Request", f"body.{len(body)}") from None
    if not isinstance(value, dict):
        raise Refusal(400, "1 validation error:\n  not an object", "Bad Request", "body")
    return value


def number(body: dict[str, Any], name: str, default: int | None, least: int) -> int | None:
    """An integer field, or its default when absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        text = f"1 validation error:\n  {name}: Input should be a valid integer"
        raise Refusal(400, text, "Bad Request", f"body.{name}")
    if value < least:
        raise Refusal(400, f"{name} must be at least {least}, got {value}.", param=name)
    return value


def completion_prompts(body: dict[str, Any]) -> list[array[int]]:
    """The prompts of a completions body: text, texts, token ids, lists of token ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [tokenize(prompt.encode("utf-8", "surrogatepass"))]
    if not isinstance(prompt, list) or not prompt:
        raise Refusal(400, "1 validation error:\n  prompt: Field required", "Bad Request", "prompt")
    if isinstance(prompt[0], int):
        return [_ids(prompt)]
    if isinstance(prompt[0], list):
        return [_ids(part) for part in prompt]
    if not all(isinstance(part, str) for part in prompt):
        raise Refusal(400, "1 validation error:\n  prompt: mixed types", "Bad Request", "prompt")
    return [tokenize(part.encode("utf-8", "surrogatepass")) for part in prompt]


def chat_prompt(body: dict[str, Any]) -> array[int]:
    """Messages and tools of a chat body through the chat template."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        text = "1 validation error:\n  messages: Field required"
        raise Refusal(400, text, "Bad Request", "body.messages")
    try:
        return tokenize(render_chat(messages, body.get("tools")))
    except (TypeError, AttributeError, KeyError) as error:
        text = f"1 validation error:\n  messages: {error!r}"
        raise Refusal(400, text, "Bad Request", "body.messages") from None


def text_of(value: Any) -> array[int]:
    """Any `input` of embeddings, score and the like as one prompt."""
    if isinstance(value, str):
        return tokenize(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list) and value and isinstance(value[0], int):
        return _ids(value)
    return tokenize(msgspec.json.encode(value))


def responses_messages(body: dict[str, Any]) -> list[Any]:
    """`input` and `instructions` of a responses body as chat messages."""
    source = body.get("input")
    messages: list[Any] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    if isinstance(source, str):
        messages.append({"role": "user", "content": source})
    elif isinstance(source, list):
        messages.extend(source)
    else:
        text = "1 validation error:\n  input: Field required"
        raise Refusal(400, text, "Bad Request", "body.input")
    return messages


def anthropic_messages(body: dict[str, Any]) -> list[Any]:
    """`system` and `messages` of an Anthropic body as chat messages."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        text = "1 validation error:\n  messages: Field required"
        raise Refusal(400, text, "Bad Request", "body.messages")
    system = body.get("system")
    return [{"role": "system", "content": system}, *messages] if system else messages


def seed_of(prompt: array[int], choice: int, seed: Any) -> bytes:
    """What the generated text depends on: the prompt, the choice, the request's seed."""
    digest = hashlib.blake2b(prompt.tobytes(), digest_size=16)
    digest.update(f"{choice}/{seed}".encode())
    return digest.digest()


def natural_length(seed: bytes) -> int:
    """Output tokens of an answer that ends by itself: 16 to 143, fixed by its seed."""
    return 16 + seed[0] % 128


def _ids(values: list[Any]) -> array[int]:
    try:
        return array("I", values)
    except (TypeError, OverflowError) as error:
        raise Refusal(400, f"token ids out of vocabulary: {error}", param="prompt") from None
