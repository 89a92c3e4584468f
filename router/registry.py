"""Names to parts: scorers, filters, pickers and policies, built in or brought along.

A part is a built-in name, the name of an installed entry point (group "warmlane.scorers"), or
`module:Class`. Its parameters are its own fields, checked when it is built: an unknown part or
parameter stops the router at start and never turns into a silent zero at a decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import msgspec

from warmlane.router.config import Part, PoolConfig
from warmlane.router.config_load import explain_error
from warmlane.router.errors import ConfigError
from warmlane.router.filters import FILTERS
from warmlane.router.interfaces import Filter, Picker, Scorer
from warmlane.router.pickers import PICKERS
from warmlane.scorers import BUILTIN, DEFAULT_MIX, WEIGHTED_MIX

ENTRY_POINTS = "warmlane.scorers"
BASELINES = "warmlane.router.sim.baselines"


class Policy(NamedTuple):
    """What a policy name stands for: a mix of scorers and the picker that orders by it."""

    scorers: tuple[Part, ...]
    picker: str


POLICIES: Mapping[str, Policy] = {
    "default": Policy(DEFAULT_MIX, "best"),
    "weighted": Policy(WEIGHTED_MIX, "best"),
    "round-robin": Policy((), "round_robin"),
    "least-requests": Policy(("least_requests",), "best"),
    "random": Policy((), "random"),
    # Of others, to compare with; `sim.baselines` says where each comes from.
    **{
        name: Policy((f"{BASELINES}:{part}",), "best")
        for name, part in {
            "llmd-weighted": "LlmdWeighted",
            "llmd-affinity": "LlmdAffinity",
            "dynamo": "Dynamo",
            "lmetric": "LMetric",
            "sglang": "Sglang",
            "bounded-hash": "BoundedHash",
            "aibrix": "Aibrix",
            "least-ttft": "LeastTtft",
            "preble": "Preble",
            "dualmap": "DualMap",
        }.items()
    },
    "llmd-weighted-live": Policy(({"name": f"{BASELINES}:LlmdWeighted", "live": True},), "best"),
    "lmetric-queued": Policy(({"name": f"{BASELINES}:LMetric", "queued": True},), "best"),
    "power-of-two": Policy((), f"{BASELINES}:PowerOfTwo"),
}


class Weighted(NamedTuple):
    """One scorer of a mix, ready to run."""

    name: str
    scorer: Scorer
    weight: float


class Parts(NamedTuple):
    """Everything of a pool's policy, built and checked."""

    scorers: list[Weighted]
    filters: list[tuple[str, Filter]]
    picker: Picker
    picker_name: str


def build_parts(config: PoolConfig, where: str) -> Parts:
    """The parts that a pool's config asks for. Raises ConfigError naming field and value."""
    policy = POLICIES.get(config.policy)
    if policy is None:  # any scorer may decide alone
        _find_scorer(config.policy, f"{where}.policy", POLICIES)
        policy = Policy((config.policy,), "best")
    scorers: Sequence[Part] = config.scorers or policy.scorers
    built = [scorer(part, f"{where}.scorers[{i}]") for i, part in enumerate(scorers)]
    _distinct([item.name for item in built], f"{where}.scorers")
    filters = [("ready", FILTERS["ready"]()), ("served", FILTERS["served"]())]
    filters.append(("subset", FILTERS["subset"]()))
    for i, part in enumerate(config.filters):
        at = f"{where}.filters[{i}]"
        name, fields = _split(part, at)
        if name in ("ready", "served", "subset"):
            raise ConfigError(f"{at}: {name!r}: always applies; leave it out")
        filters.append((name, _build(_named(name, FILTERS, at), fields, Filter, at)))
    _distinct([name for name, _ in filters], f"{where}.filters")
    at = f"{where}.picker"
    picker_name, fields = _split(config.picker or policy.picker, at)
    picker = _build(_named(picker_name, PICKERS, at), fields, Picker, at)
    if picker.needs_scores and not built:
        raise ConfigError(f"{at}: {picker_name!r}: needs scorers, and the mix is empty")
    return Parts(built, filters, picker, picker_name)


def scorer(part: Part, where: str) -> Weighted:
    """One scorer of a mix. `weight` (default 1) is the mix's, all other fields the scorer's."""
    name, fields = _split(part, where)
    weight = fields.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e6:
        raise ConfigError(f"{where}.weight: {weight!r}: must be a number from 0 to 1000000")
    found = _build(_find_scorer(name, where), fields, Scorer, where)
    return Weighted(name, found, float(weight))


def _find_scorer(name: str, where: str, also: Mapping[str, Any] | None = None) -> Any:
    if name in BUILTIN:
        return _load(BUILTIN[name], where)
    if ":" in name:
        return _load(name, where)
    # Loaded on demand: it costs 30 ms and pulls in the socket module, which the library leaves out.
    for entry in import_module("importlib.metadata").entry_points(group=ENTRY_POINTS, name=name):
        return _load(entry.value, where)
    known = ", ".join(sorted({*BUILTIN, *(also or ())}))
    raise ConfigError(f"{where}: {name!r}: unknown; known: {known}, or module:Class")


def _named(name: str, table: Mapping[str, Any], where: str) -> Any:
    if name in table:
        return table[name]
    if ":" in name:
        return _load(name, where)
    raise ConfigError(
        f"{where}: {name!r}: unknown; known: {', '.join(sorted(table))}, or module:Class"
    )


def _load(path: str, where: str) -> Any:
    """The object at `module:attribute`. Its module's own errors are the operator's to see."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: {path!r}: cannot be imported: {error}") from error


def _build(factory: Any, fields: dict[str, Any], face: type[Any], where: str) -> Any:
    try:
        if isinstance(factory, type) and issubclass(factory, msgspec.Struct):
            part = msgspec.convert(fields, factory)
        else:
            part = factory(**fields)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}.{explain_error(error, fields, factory)}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {fields!r}: {error}") from error
    if not isinstance(part, face):
        need = [name for name in vars(face) if not name.startswith("_")]
        raise ConfigError(f"{where}: {factory!r}: is no {face.__name__}; it needs {need}")
    return part


def _split(part: Part, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(part, str):
        return part, {}
    fields = dict(part)
    name = fields.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.name: {name!r}: must be the name of a part")
    return name, fields


def _distinct(names: list[str], where: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"{where}[{i}]: {name!r}: used twice")
