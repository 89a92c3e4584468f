"""Are our token ids the engine's? The probe set of `token_jobs`, for `warmlane doctor`. Floor 6."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from warmlane.router.doctor_visit import Visit
from warmlane.router.errors import ConfigError
from warmlane.router.feeds.client import EngineError

CACHE_BYTES: Final = 16 * 1024 * 1024


def library() -> ModuleType:
    """The module that reads tokenizers. ConfigError: its packages are not installed."""
    try:
        return import_module("warmlane.router.tokenizer_local")
    except ModuleNotFoundError as error:
        if error.name not in ("tokenizers", "jinja2"):
            raise
        raise ConfigError(
            f"--tokenizer: {error.name} is not installed: pip install 'warmlane[exact]'"
        ) from error


async def tokens(visit: Visit) -> None:
    """With a tokenizer: compare it with the engine's; without: can the engine be asked?"""
    path = visit.patient.tokenizer
    if path in ("", "off", "engine"):
        status, data = await visit.asked("/tokenize", {"model": visit.model, "prompt": "warm"})
        if status == 200 and isinstance(data, dict) and data.get("tokens"):
            visit.say("tokenizer", "skip", "POST /tokenize answers; no --tokenizer to compare")
        else:
            advice = "exact matching then needs tokenizer: PATH of the model's own files"
            visit.say(
                "tokenizer",
                "fail" if path == "engine" else "warn",
                f"POST /tokenize: {status}",
                advice,
            )
        return
    tokenize = import_module("warmlane.router.tokenize")
    with ThreadPoolExecutor(1, "doctor") as workers:
        local = tokenize.LocalTokens(
            visit.model, library().load(path, CACHE_BYTES, "--tokenizer"), workers
        )
        proof = await local.prove(visit.name, lambda _, body: _ask(visit, tokenize, body))
    unequal = ", ".join(
        sorted(import_module("warmlane.router.token_jobs").FEATURES - proof.features)
    )
    if proof.state == "silent":
        advice = "open POST /tokenize to the router, or it cannot prove anything"
        visit.say("tokenizer", "fail", "the engine does not answer POST /tokenize", advice)
    elif not proof.features:
        advice = f"other ids from the start: is {path} this model's folder?"
        visit.say("tokenizer", "fail", "no probe makes equal ids", advice)
    elif "chat" not in proof.features:
        advice = "prompts agree, chats do not: give the router the engine's --chat-template"
        visit.say("tokenizer", "fail", f"unequal: {unequal}", advice)
    elif unequal:
        advice = "requests that use these are routed on the approximate view"
        visit.say("tokenizer", "warn", f"equal but for: {unequal}", advice)
    else:
        visit.say("tokenizer", "ok", "equal ids for every probe")


async def _ask(visit: Visit, tokenize: ModuleType, body: dict[str, Any]) -> list[int]:
    silent = tokenize.EngineSilent
    status, data = 0, None
    try:
        status, data = await visit.asked("/tokenize", body)
    except EngineError as error:
        raise silent(str(error)) from error
    if status != 200 or not isinstance(data, dict) or not isinstance(data.get("tokens"), list):
        raise silent(f"answered {status}")
    found: list[int] = data["tokens"]
    return found
