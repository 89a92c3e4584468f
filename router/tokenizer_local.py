"""A model's own tokenizer and chat template, from its folder, in this process. Floor 5.

Reads what model repositories hold: `tokenizer.json`, `tokenizer_config.json`, and the template
inside it or in `chat_template.jinja` / `chat_template.json`. No hub, no network. Needs the packages
of the `exact` extra (tokenizers, jinja2), so it is imported only where a config names a tokenizer.

Encoding runs in worker threads: the library's plain `encode` holds the interpreter for 18 ms at
64 KB, `encode_batch_fast` frees it. Where `fastokens` is installed and proven equal, it encodes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from warmlane.router.encoding import Encoder
from warmlane.router.errors import ConfigError
from warmlane.router.templates import ChatTemplate, ContentFormat, Untranslatable
from warmlane.router.token_jobs import TEXTS, Job
from warmlane.router.tokenizer_fast import faster

# Words of which no tokenizer makes special tokens, to find what it puts around a prompt.
_PLAIN: Final = "warm lane"
_SPECIAL_NAMES: Final = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    "additional_special_tokens",
)


class HfBackend:
    """`encoding.Backend` over the `tokenizers` library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    def around(self) -> tuple[list[int], list[int]]:
        bare = self._tokenizer.encode(_PLAIN, add_special_tokens=False).ids
        full = self._tokenizer.encode(_PLAIN, add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        raise ValueError("the tokenizer rewrites a prompt when it adds special tokens")

    def cutters(self) -> list[str] | None:
        added = self._tokenizer.get_added_tokens_decoder().values()
        cut = [token for token in added if not token.normalized and token.content]
        if any(token.lstrip or token.rstrip or token.single_word for token in added):
            return None  # such a token swallows blanks of its neighbours
        return [token.content for token in cut] or None


class LocalTokenizer:
    """Token ids of jobs."""

    def __init__(self, encoder: Encoder, template: ChatTemplate | None) -> None:
        self.encoder = encoder
        self.template = template

    def ids(self, job: Job, content: ContentFormat, *, fold: bool = True) -> tuple[bytes, bool]:
        """Native uint32 ids, and whether they are the whole prompt's (not cut at an image).

        content, fold: how messages are shown to the template. Raises Untranslatable. Thread-safe.
        """
        if job.chat is None:
            return self.encoder.encode(job.text, around=job.around), True
        if self.template is None:
            raise Untranslatable("no_template")
        text, whole = self.template.render(job.chat, content, fold=fold)
        if not whole:
            text = self.encoder.safe_start(text)
        return self.encoder.encode(text, around=job.around and whole), whole


def load(path: str, max_bytes: int, where: str) -> LocalTokenizer:
    """The tokenizer of a model folder (or of a tokenizer.json in one). Takes up to seconds.

    ConfigError: names `where`, the path and what is missing or wrong.
    """
    given = Path(path)
    folder = given if given.is_dir() else given.parent
    file = folder / "tokenizer.json" if given.is_dir() else given
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        raise ConfigError(f"{where}: {file}: no readable tokenizer: {error}") from error
    config = _read_json(folder / "tokenizer_config.json", where)
    try:
        encoder = Encoder(faster(file, HfBackend(tokenizer)), max_bytes, TEXTS)
        template = _template(folder, config, where)
    except ValueError as error:
        raise ConfigError(f"{where}: {folder}: {error}") from error
    return LocalTokenizer(encoder, template)


def _read_json(path: Path, where: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {path}: not a JSON object")
    return found


def _template(folder: Path, config: dict[str, Any], where: str) -> ChatTemplate | None:
    sources: Any = config.get("chat_template")
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        sources = jinja.read_text(encoding="utf-8")
    elif sources is None:
        sources = _read_json(folder / "chat_template.json", where).get("chat_template")
    if sources is None:
        return None
    if isinstance(sources, str):
        sources = {"default": sources}
    elif isinstance(sources, list):
        sources = {each["name"]: each["template"] for each in sources}
    return ChatTemplate(sources, _specials(config))


def _specials(config: dict[str, Any]) -> dict[str, Any]:
    """`bos_token` and the like as text; a token may be written as an object with `content`."""
    made: dict[str, Any] = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            made[name] = value
        elif isinstance(value, list):
            made[name] = [each.get("content") if isinstance(each, dict) else each for each in value]
    return made
