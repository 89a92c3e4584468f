"""The rules of the house, read from the tree itself: floors, links, sizes, company of a module.

Nothing is imported here: imports are read from the syntax tree, so that a module which cannot be
imported is judged too. A new module that no pattern of FLOORS knows fails the test: give it a
floor in the table of docs/architecture.md and here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKS = {
    "router": "../../router",
    "scorers": "../../scorers",
    "envoy": "../../envoy",
    "_core": "../../src_ext",
}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

# First match wins. A module imports from its own floor or below.
FLOORS: list[tuple[str, int]] = [
    ("warmlane._core", 0),
    ("warmlane._core.*", 0),
    ("warmlane.router.types", 1),
    ("warmlane.router.errors", 1),
    ("warmlane.router.interfaces", 2),
    ("warmlane.router.config", 2),
    ("warmlane.router.config_cli", 8),  # a command: it builds the parts that the tree names
    ("warmlane.router.config_*", 2),
    ("warmlane.router", 0),  # the packages themselves hold a docstring and nothing else
    ("warmlane.router.feeds", 0),
    ("warmlane.router.proxy", 0),
    ("warmlane.router.sim", 0),
    ("warmlane.envoy", 0),
    ("warmlane.envoy.proto", 0),
    ("warmlane.router.registry", 3),
    ("warmlane.router.requests", 3),
    ("warmlane.router.mend", 3),
    ("warmlane.router.answers", 3),
    ("warmlane.router.problems", 3),
    ("warmlane.router.attempts", 3),
    ("warmlane.router.health", 3),
    ("warmlane.router.prefix", 3),
    ("warmlane.router.encoding", 5),
    ("warmlane.router.templates", 5),
    ("warmlane.router.token_jobs", 5),
    ("warmlane.router.tokenizer_*", 5),
    ("warmlane.router.index", 3),
    ("warmlane.router.exact", 3),
    ("warmlane.router.trust", 3),
    ("warmlane.router.watchdog", 3),
    ("warmlane.router.pool", 3),
    ("warmlane.router.adapters", 3),
    ("warmlane.router.adapters_*", 3),
    ("warmlane.router.pace", 3),
    ("warmlane.router.zones", 3),
    ("warmlane.router.foreign", 3),
    ("warmlane.router.share", 4),
    ("warmlane.router.record", 4),
    ("warmlane.router.record_types", 1),
    ("warmlane.router.record_file", 5),
    ("warmlane.router.apart", 4),
    ("warmlane.router.share_wire", 3),
    ("warmlane.router.candidates", 3),
    ("warmlane.router.catalog", 3),
    ("warmlane.router.rewrites", 3),
    ("warmlane.router.view", 3),
    ("warmlane.router.filters", 3),
    ("warmlane.router.pickers", 3),
    ("warmlane.router.costs", 3),
    ("warmlane.scorers", 3),
    ("warmlane.scorers.*", 3),
    ("warmlane.router.decide", 4),
    ("warmlane.router.lane", 4),
    ("warmlane.router.lane_*", 4),
    ("warmlane.router.explain", 4),
    ("warmlane.router.admission", 4),
    ("warmlane.router.admission_line", 4),  # holds what lanes prepared
    ("warmlane.router.admission_outlook", 4),
    ("warmlane.router.admission_*", 3),
    ("warmlane.router.core", 4),
    ("warmlane.router.predicted", 4),
    ("warmlane.router.shadow", 4),
    ("warmlane.router.metrics", 4),
    ("warmlane.router.metrics_export", 4),
    ("warmlane.router.metrics_table", 4),
    ("warmlane.router.feeds.*", 5),
    ("warmlane.router.tokenize", 5),
    ("warmlane.router.build", 6),
    ("warmlane.router.sim.lab*", 6),
    ("warmlane.router.sim.replay", 8),  # a command; shows a progress bar
    ("warmlane.router.sim.replay*", 6),
    ("warmlane.router.command", 8),  # argv and signals of the two below
    ("warmlane.router.serve", 8),  # build, proxy and admin joined; a command
    ("warmlane.router.audit", 8),
    ("warmlane.router.audit_table", 8),
    ("warmlane.router.audit_*", 6),
    ("warmlane.router.doctor", 8),
    ("warmlane.router.doctor_*", 6),
    ("warmlane.router.explain_cli", 8),
    ("warmlane.router.ext_proc", 8),  # build, the Envoy face and admin joined; a command
    ("warmlane.router.proxy.*", 7),
    ("warmlane.envoy.*", 7),
    ("warmlane.router.sim.client", 7),
    ("warmlane.router.sim.player", 7),
    ("warmlane.router.sim.driver", 7),  # the model in wall-clock time
    ("warmlane.router.sim.server*", 7),
    ("warmlane.router.sim.demo*", 8),
    ("warmlane.router.sim.*", 3),  # the model itself and its workloads: pure
    ("warmlane.router.cli", 8),
    ("warmlane.__main__", 8),
    ("warmlane", 8),
]

# Where time, chance and the network may be touched at all; below that they come in as arguments.
PURE_FLOOR = 4
IMPURE = {
    *("asyncio", "time", "random", "secrets", "socket", "ssl", "select", "selectors", "threading"),
    *("subprocess", "multiprocessing", "http", "urllib.request", "signal", "uvloop", "aiohttp"),
    *("zmq", "httptools", "grpc", "prometheus_client", "concurrent"),
}
IMPURE_WHERE = {"warmlane.router.metrics_export": {"prometheus_client"}}
# Third-party packages by the lowest floor that may use them.
PACKAGES = {
    "jinja2": 5,
    "fastokens": 5,
    "tokenizers": 5,
    "msgspec": 1,
    "yaml": 2,
    "prometheus_client": 4,
    "aiohttp": 5,
    "dns": 5,
    "redis": 5,
    "zmq": 5,
    "uvloop": 6,
    "httptools": 7,
    "grpc": 7,
    "cryptography": 7,
    "google": 7,  # protobuf: tests and the conformance suite
    "rich": 8,
}

# A Cython function that Python can call, other than the making and unmaking of an object.
PUBLIC = r"^\s*(def|cpdef)\s+(?!_[a-z]|__cinit__|__dealloc__)"


# Compiled modules without a twin file, and what their tests compare them with instead.
OTHER_ORACLES = {
    "poll": "asyncio's promises, on real sockets: tests/core/test_poll.py",
    "desk": "router.lane, which decides every other request: tests/proxy/test_straight.py",
    "leads": "router.catalog and router.lane: tests/proxy/test_straight.py, tests/envoy",
    "proc_gate": "envoy.session, as for proc_course",
    "proc_course": "envoy.session, which takes every order: tests/envoy, each test on both halves",
    "hop": "router.proxy.downstream and upstream: tests/proxy, each test on both paths",
    "straight": "router.proxy.exchange: tests/proxy, each test on both paths",
}


class Import(NamedTuple):
    """One imported module, absolute, and where."""

    target: str
    line: int
    inside: bool  # in a function body


class Module(NamedTuple):
    """One Python source of the package, under the name that it is imported by."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def floor(self) -> int | None:
        return floor_of(self.name)


def floor_of(name: str) -> int | None:
    return next((floor for pattern, floor in FLOORS if fnmatchcase(name, pattern)), None)


def tracked() -> list[str]:
    """Paths that git tracks or would add, so that an ignored build product is never judged."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: the rules of the tree are checked where it is developed")
    return [line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def package_modules() -> list[Module]:
    """Every .py of the package, named as it is imported."""
    rooms = {"router": "router", "scorers": "scorers", "envoy": "envoy", "src_ext": "_core"}
    found = []
    for line in tracked():
        path = Path(line)
        if path.suffix != ".py":
            continue
        if path.parts[:2] == ("src", "warmlane"):
            parts = path.parts[1:]
        elif path.parts[0] in rooms:
            parts = ("warmlane", rooms[path.parts[0]], *path.parts[1:])
        else:
            continue
        name = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
        text = (ROOT / path).read_text()
        tree = ast.parse(text, str(path))
        found.append(Module(name, path, tree, len(text.splitlines())))
    return found


def imports_of(module: Module) -> Iterator[Import]:
    """All imports, also relative ones and those under TYPE_CHECKING: a type is a dependency too."""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, inside)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = package.split(".")
                    parts = parts[: len(parts) - child.level + 1]
                    base = ".".join([*parts, base] if base else parts)
                yield Import(base, child.lineno, inside)
                for alias in child.names:  # `from package import module`
                    yield Import(f"{base}.{alias.name}", child.lineno, inside)
            deeper = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or deeper)

    yield from walk(module.tree, False)


MODULES = {module.name: module for module in package_modules()}


def broken_floors(module: Module) -> list[str]:
    """What this module imports from above its floor."""
    floor = module.floor
    wrong = []
    for target, line, _ in imports_of(module):
        if target not in MODULES and not target.startswith("warmlane._core."):
            continue
        other = floor_of(target)
        if floor is not None and other is not None and other > floor:
            wrong.append(f"{module.path}:{line} (floor {floor}) imports {target} (floor {other})")
    return wrong


def broken_company(module: Module) -> list[str]:
    """Third-party or impure modules that this floor may not touch."""
    floor = module.floor
    wrong = []
    for target, line, _ in imports_of(module):
        top = target.split(".")[0]
        allowed = IMPURE_WHERE.get(module.name, set())
        if floor is not None and floor <= PURE_FLOOR and {top, target} & (IMPURE - allowed):
            wrong.append(f"{module.path}:{line} (floor {floor}) touches {top}")
        elif floor is not None and floor < PACKAGES.get(top, 0):
            wrong.append(f"{module.path}:{line} (floor {floor}) uses {top}")
        elif top not in sys.stdlib_module_names | PACKAGES.keys() | {"warmlane"}:
            wrong.append(f"{module.path}:{line} uses {top}, which no floor allows")
    return wrong


def test_every_module_has_a_floor() -> None:
    assert [name for name, module in MODULES.items() if module.floor is None] == []


def test_a_module_imports_from_its_floor_or_below() -> None:
    assert [line for module in MODULES.values() for line in broken_floors(module)] == []


def test_lower_floors_touch_no_clock_chance_or_network() -> None:
    assert [line for module in MODULES.values() for line in broken_company(module)] == []


def test_the_rules_can_fail() -> None:
    """The reader sees relative, nested and type-only imports: a rule that never bites is none."""
    text = (
        "from typing import TYPE_CHECKING\n"
        "from ..router import core\n"
        "import asyncio, leftpad\n"
        "if TYPE_CHECKING:\n    from warmlane.router.cli import main\n"
        "def late():\n    import time\n"
    )
    module = Module("warmlane.scorers.bad", Path("scorers/bad.py"), ast.parse(text), 7)
    seen = {item.target: item for item in imports_of(module)}
    assert seen["warmlane.router.core"].line == 2
    assert seen["time"].inside and not seen["asyncio"].inside
    assert [line for line in broken_floors(module) if "router.cli" in line]
    company = broken_company(module)
    assert len(company) == 3 and all(w in str(company) for w in ("asyncio", "leftpad", "time"))


def test_scorers_never_import_each_other() -> None:
    wrong = [
        f"{module.path}:{item.line} imports {item.target}"
        for module in MODULES.values()
        if module.name.startswith("warmlane.scorers.")
        for item in imports_of(module)
        if item.target.startswith("warmlane.scorers")
    ]
    assert wrong == []


def test_proxy_and_envoy_never_import_each_other() -> None:
    faces = ("warmlane.router.proxy", "warmlane.envoy")
    wrong = [
        f"{module.path}:{item.line} imports {item.target}"
        for module in MODULES.values()
        for mine, other in (faces, faces[::-1])
        if module.name.startswith(mine)
        for item in imports_of(module)
        if item.target.startswith(other)
    ]
    assert wrong == []


def test_no_import_inside_functions() -> None:
    wrong = [
        f"{module.path}:{item.line} imports {item.target} in a function"
        for module in MODULES.values()
        for item in imports_of(module)
        if item.inside
    ]
    assert wrong == []


def test_the_folders_are_not_import_names() -> None:
    """`import router` works by accident in a checkout and nowhere else."""
    wrong = []
    for line in tracked():
        text = (ROOT / line).read_text() if line.endswith((".py", ".pyx", ".pxd", ".pyi")) else ""
        for number, content in enumerate(text.splitlines(), 1):
            if re.match(r"\s*(from|import|cimport)\s+(router|scorers|envoy|src_ext)\b", content):
                wrong.append(f"{line}:{number}: {content.strip()}")
    assert wrong == []


def test_links_are_committed_as_links() -> None:
    done = subprocess.run(
        ["git", "ls-files", "--stage", "src/warmlane"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    modes = {line.split("\t")[1]: line.split()[0] for line in done.stdout.splitlines()}
    for link, target in LINKS.items():
        path = ROOT / "src" / "warmlane" / link
        assert modes.get(f"src/warmlane/{link}") == "120000", f"{link} is not a link in git"
        assert path.is_symlink() and str(path.readlink()) == target
        assert path.is_dir(), f"{link} leads nowhere"


def test_modules_and_functions_stay_small() -> None:
    wrong = [
        f"{module.path} has {module.lines} lines"
        for module in MODULES.values()
        if module.lines > MAX_MODULE_LINES
    ]
    for line in tracked():
        if line.endswith(".pyx") and line.startswith("src_ext/"):
            lines = len((ROOT / line).read_text().splitlines())
            wrong += [f"{line} has {lines} lines"] if lines > MAX_MODULE_LINES else []
        if not line.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((ROOT / line).read_text(), line)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{line}:{node.lineno} {node.name} has {length} lines")
    assert wrong == []


def test_every_module_says_what_it_owns() -> None:
    """An empty __init__.py owns nothing and may stay silent."""
    wrong = []
    for line in tracked():
        text = (ROOT / line).read_text() if line.endswith(".py") else ""
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            wrong.append(line)
    assert wrong == []


def test_a_cython_module_is_four_files() -> None:
    """Header, source, types and, where Python can call it, a plain twin that is the oracle."""
    files = set(tracked())
    twins = " ".join(line for line in files if line.startswith("tests/core/"))
    wrong = []
    for line in sorted(files):
        if line.startswith("src_ext/") and line.endswith(".pyx"):
            path = Path(line)
            sides = [str(path.with_suffix(end)) for end in (".pxd", ".pyi")]
            wrong += [side for side in sides if side not in files]
            stem = "_".join((*path.parts[1:-1], path.stem))
            face = re.search(PUBLIC, (ROOT / line).read_text(), re.M)
            if stem in OTHER_ORACLES:
                continue
            if face and not re.search(rf"core/(twin_{stem}|{stem}_twin)\.py", twins):
                wrong.append(f"twin of {stem} in tests/core/")
    assert wrong == []


def test_c_core_imports_nothing_of_ours_but_itself() -> None:
    wrong = []
    for line in tracked():
        if line.startswith("src_ext/") and line.endswith((".pyx", ".pxd", ".pyi")):
            for number, content in enumerate((ROOT / line).read_text().splitlines(), 1):
                match = re.match(r"\s*(?:from|c?import)\s+(warmlane[\w.]*)", content)
                if match and not match[1].startswith("warmlane._core"):
                    wrong.append(f"{line}:{number}: {content.strip()}")
                if re.match(r"\s*(include\s+['\"]|DEF\s)", content):
                    wrong.append(f"{line}:{number}: {content.strip()}")
    assert wrong == []


def test_no_unfinished_work_is_committed() -> None:
    """A marker for later is a promise nobody keeps: write an issue instead."""
    words = re.compile(r"\b(" + "TO" + "DO|FIX" + "ME|X" + "XX)\b")
    wrong = [
        f"{line}:{number}"
        for line in tracked()
        if line.endswith((".py", ".pyx", ".pxd", ".pyi", ".h", ".md", ".toml", "Makefile"))
        for number, content in enumerate((ROOT / line).read_text().splitlines(), 1)
        if words.search(content)
    ]
    assert wrong == []
