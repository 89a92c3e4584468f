"""`warmlane check-config FILE`: the whole tree with its defaults, or one line and exit status 2.

Builds every pool's scorers, filters and picker too, so that a wrong part or parameter is found here
and not at a deployment. Reads the file and imports the parts it names; opens no connection.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec
import yaml

from warmlane.router.config import Config
from warmlane.router.config_load import load
from warmlane.router.errors import ConfigError
from warmlane.router.registry import build_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("file", nargs="?", metavar="FILE", help="YAML or JSON configuration")
    group.add_argument(
        "--reference", action="store_true", help="print every field with default and meaning"
    )


def run(args: argparse.Namespace) -> int:
    """Check and print. ConfigError (exit status 2) names the file, the field and the value."""
    if args.reference:
        sys.stdout.write(reference())
        return 0
    sys.stdout.write(render(check(args.file)))
    return 0


def check(path: str) -> Config:
    """The checked tree, after building everything that it names."""
    config = load(path)
    for number, pool in enumerate(config.pools):
        try:
            build_parts(pool, f"pools[{number}]")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return config


def render(config: Config) -> str:
    """The whole tree as YAML that loads to an equal tree."""
    plain = msgspec.to_builtins(config)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    return text


def reference() -> str:
    """docs/config.md: one table per struct, from the structs themselves."""
    lines = [
        "# Configuration",
        "",
        "`warmlane serve --config FILE` and `warmlane check-config FILE` read one tree, YAML or",
        "JSON. Unknown fields are errors. Flags of `serve` are laid over the file. This page is",
        "printed by `warmlane check-config --reference`; a test keeps it equal to the code.",
        "",
    ]
    for struct in _structs(Config, []):
        lines += [f"## {struct.__name__}", "", (struct.__doc__ or "").strip(), ""]
        lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(field) for field in msgspec.structs.fields(struct)]
        lines.append("")
    return "\n".join(lines)


def _row(field: msgspec.structs.FieldInfo) -> str:
    kind, notes = _unwrap(field.type)
    bounds = [
        f"{sign} {value}"
        for note in notes
        for sign, value in ((">=", note.ge), (">", note.gt), ("<=", note.le))
        if value is not None
    ]
    meaning = next((note.description for note in notes if note.description), "")
    shown = ", ".join([_type_name(kind), *bounds]).replace("|", "or")
    return f"| `{field.name}` | {shown} | {_default(field)} | {meaning} |"


def _unwrap(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """A type without its annotations, and these, outermost first."""
    notes: list[msgspec.Meta] = []
    while hasattr(kind, "__metadata__"):
        notes = [note for note in kind.__metadata__ if isinstance(note, msgspec.Meta)] + notes
        kind = kind.__origin__
    return kind, notes


def _type_name(kind: Any) -> str:
    kind, _ = _unwrap(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is list:
        return f"list of {_type_name(inner[0])}"
    if origin is dict:
        return f"map of {_type_name(inner[0])} to {_type_name(inner[1])}"
    if inner and all(isinstance(each, str) for each in inner):
        return " or ".join(f'"{each}"' for each in inner)
    if inner:
        return " or ".join(_type_name(each) for each in inner)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if kind is Any:
        return "anything"
    return "null" if kind is type(None) else kind.__name__


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
        return f"`{value!r}`" if not value else f"{len(value)} with its defaults"
    if isinstance(field.default, msgspec.Struct):
        return "its defaults"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _structs(struct: type[msgspec.Struct], seen: list[type]) -> Iterator[type[msgspec.Struct]]:
    """`struct` and all structs below it, each once, in order of appearance."""
    seen.append(struct)
    yield struct
    for field in msgspec.structs.fields(struct):
        for kind in _parts(field.type):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
                yield from _structs(kind, seen)


def _parts(kind: Any) -> Iterator[Any]:
    kind, _ = _unwrap(kind)
    yield kind
    for inner in get_args(kind):
        yield from _parts(inner)
