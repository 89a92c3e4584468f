"""Plain-Python oracle of `_core.sse`: reads a whole answer at once, event by event, with `json`.

It defines the findings for well-formed answers; on damaged ones the compiled reader only promises
to give the same findings for every cutting of the same bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

ENDS = {"message_stop", "response.completed", "response.incomplete"}
STATUS = {"completed", "incomplete", "failed", "cancelled"}


@dataclass
class Found:
    first_token: bool = False
    finish_reason: str = ""
    error: bool = False
    done: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    text: bytes = b""
    documents: int = 0

    def __post_init__(self) -> None:
        self.cache_read: int | None = None
        self.cache_made = 0
        self.input: int | None = None


def words(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def obj(item: Any) -> dict[str, Any]:
    return item if isinstance(item, dict) else {}


def items(item: Any) -> list[Any]:
    return item if isinstance(item, list) else []


def count(fields: dict[str, Any], *names: str) -> int | None:
    found = [fields[name] for name in fields if name in names and type(fields[name]) is int]
    return found[-1] if found else None


def usage(found: Found, raw: Any) -> None:
    fields = obj(raw)
    prompt = count(fields, "prompt_tokens", "input_tokens")
    output = count(fields, "completion_tokens", "output_tokens")
    details = obj(fields.get("prompt_tokens_details") or fields.get("input_tokens_details"))
    cached = count(details, "cached_tokens")
    read = count(fields, "cache_read_input_tokens")
    found.input = found.input if prompt is None else prompt
    found.output_tokens = found.output_tokens if output is None else output
    found.cached_tokens = found.cached_tokens if cached is None else cached
    found.cache_read = found.cache_read if read is None else read
    found.cache_made = count(fields, "cache_creation_input_tokens") or found.cache_made


def output(found: Found, value: Any, text: bool) -> bytes:
    """A member that holds generated output; returns the text that counts."""
    if value is None or value in ("", False, True) or isinstance(value, int | float):
        return b""
    if not isinstance(value, list) or value:
        found.first_token = True
    return words(value) if text and isinstance(value, str) else b""


def parts(found: Found, raw: Any) -> bytes:
    text = b""
    for part in items(raw):
        fields = obj(part)
        piece = output(found, fields.get("text"), True)
        text += piece if fields.get("type", "text") in ("text", "output_text") else b""
        output(found, fields.get("thinking"), False)
        output(found, fields.get("input"), False)
    return text


def choice(found: Found, raw: Any) -> bytes:
    fields = obj(raw)
    text = output(found, fields.get("text"), True)
    found.first_token |= bool(items(fields.get("token_ids")))
    for name in ("delta", "message"):
        delta = obj(fields.get(name))
        text += output(found, delta.get("content"), True)
        found.first_token |= bool(items(delta.get("tool_calls")))
        for mark in ("reasoning", "reasoning_content", "refusal", "function_call", "audio"):
            output(found, delta.get(mark), False)
    finish(found, fields.get("finish_reason"))
    return text if fields.get("index", 0) == 0 else b""


def finish(found: Found, value: Any) -> None:
    if isinstance(value, str) and value:
        found.finish_reason = value


def status(found: Found, value: Any) -> None:
    if value in STATUS:
        found.finish_reason = value
        found.error |= value == "failed"


def document(found: Found, fields: dict[str, Any], stream: bool) -> None:
    found.documents += 1
    kind = fields.get("type")
    found.error |= bool(fields.get("error")) or kind in ("error", "response.failed")
    found.done |= not stream or kind in ENDS or kind in ("error", "response.failed")
    for raw in items(fields.get("choices")):
        found.text += choice(found, raw)
    found.first_token |= bool(items(fields.get("data")))
    delta = fields.get("delta")
    if isinstance(delta, str):
        text = output(found, delta, True)
        found.text += text if kind == "response.output_text.delta" else b""
    elif isinstance(delta, dict):
        found.text += output(found, delta.get("text"), True)
        output(found, delta.get("partial_json"), False)
        output(found, delta.get("thinking"), False)
        finish(found, delta.get("stop_reason"))
    for item in items(fields.get("output")):
        found.text += parts(found, obj(item).get("content"))
        output(found, obj(item).get("arguments"), False)
    found.text += parts(found, fields.get("content"))
    status(found, fields.get("status"))
    finish(found, fields.get("stop_reason"))
    usage(found, fields.get("usage"))
    response = obj(fields.get("response"))
    found.error |= bool(response.get("error"))
    status(found, response.get("status"))
    usage(found, response.get("usage"))
    usage(found, obj(fields.get("message")).get("usage"))


def read(body: bytes, text_bytes: int = 1 << 18) -> Found:
    found = Found()
    start = body.lstrip(b" \t\r\n\xef\xbb\xbf")
    if start.startswith(b"{"):
        document(found, json.loads(start), False)
    elif not start.startswith((b"[", b"<")):
        for event in re.split(rb"\r\n\r\n|\n\n|\r\r", start):
            lines = re.split(rb"\r\n|\n|\r", event)
            data = b"\n".join(line[5:].lstrip(b" \t") for line in lines if line[:5] == b"data:")
            if data.strip() == b"[DONE]":
                found.done = True
            elif data:
                document(found, json.loads(data), True)
    found.text = found.text[:text_bytes]
    if found.input is not None:
        found.prompt_tokens = found.input + (found.cache_read or 0) + found.cache_made
    if found.cache_read is not None:
        found.cached_tokens = max(found.cached_tokens or 0, found.cache_read)
    return found
