"""What a user installs: the sdist, the wheel, other interpreters, the switches, the loud errors.

Each build runs on a copy of the tracked files, so that nothing left in the checkout (an old .c, a
.so) can hide a file that the distribution lacks. The whole core is compiled once for the wheel,
once per further interpreter; the switches compile the smallest module only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"router": "router", "scorers": "scorers", "envoy": "envoy", "src_ext": "_core"}
SHIPPED = (".py", ".pyi", ".pxd", ".h", ".typed")
OTHER_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
BUILD_S = 280

USE = """
import importlib, pkgutil
import warmlane, warmlane._core
for module in pkgutil.iter_modules(warmlane._core.__path__, "warmlane._core."):
    importlib.import_module(module.name)
    print("imported", module.name)
from warmlane.router.config import PoolConfig
from warmlane.router.types import ReplicaSpec
replica = ReplicaSpec(url="http://127.0.0.1:8000")
router = warmlane.Router(warmlane.Config(pools=[PoolConfig(replicas=[replica])]))
with router.route(model="any", prompt="one request " * 50) as route:
    print("routed to", route.url)
"""

pytestmark = pytest.mark.timeout(BUILD_S * 2)


def run(
    command: Sequence[str | Path],
    cwd: Path,
    *,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run without a terminal and outside the checkout's import path; show the output on failure."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "WARMLANE_"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=keep | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_S,
    )
    if check and done.returncode:
        pytest.fail(f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: packaging is tested where it is developed")
    return [line for line in done.stdout.splitlines() if os.path.lexists(ROOT / line)]


def copy_tree(target: Path) -> Path:
    for line in tracked():
        (target / line).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / line, target / line, follow_symlinks=False)
    return target


def package_files(ends: tuple[str, ...]) -> set[str]:
    """Paths below the installed `warmlane/` of the tracked files with these endings."""
    found = set()
    for line in tracked():
        parts = Path(line).parts
        if line.endswith(ends) and parts[0] in ROOMS:
            found.add("/".join((ROOMS[parts[0]], *parts[1:])))
        elif line.endswith(ends) and parts[:2] == ("src", "warmlane"):
            found.add("/".join(parts[2:]))
    return found


def has_nghttp2() -> bool:
    """Whether a build here can have the native transport: library and header."""
    program = "#include <nghttp2/nghttp2.h>\nint main(void) { return !nghttp2_version(0); }\n"
    words = [os.environ.get("CC", "cc"), "-xc", "-", "-o", os.devnull, "-lnghttp2"]
    return subprocess.run(words, input=program, text=True, capture_output=True).returncode == 0


def make_venv(folder: Path, python: str = sys.executable) -> Path:
    run([python, "-m", "venv", folder], folder.parent)
    return folder / "bin" / "python"


def find_python(version: str) -> str | None:
    """One that starts: on PATH (where pyenv's shim may refuse) or among pyenv's versions."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for path in sorted(versions.glob(f"{version}.*/bin/python"))]
    for name in (shutil.which(f"python{version}"), *found):
        if name and subprocess.run([name, "-V"], capture_output=True).returncode == 0:
            return name
    return None


def use(python: Path, cwd: Path) -> str:
    """Import every compiled module and route one request, far from the checkout."""
    return run([python, "-I", "-c", USE], cwd).stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = copy_tree(tmp_path_factory.mktemp("tree"))
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, tree]
    run(command, out)
    (made,) = out.glob("*.tar.gz")
    return made


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist with the tools that pip fetches for it, as a user's pip does."""
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, sdist], out)
    (made,) = out.glob("*.whl")
    return made


def test_sdist_has_every_source_and_nothing_generated(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        links = [member.name for member in archive.getmembers() if member.issym()]
    assert links == []  # real folders: an unpacked sdist builds where links do not exist
    wanted = {f"src/warmlane/{name}" for name in package_files((*SHIPPED, ".pyx"))}
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"}
    assert wanted - names == set()
    assert [name for name in names if name.endswith((".c", ".so", ".pyc", ".html"))] == []
    assert [name for name in names if name.startswith(("tests/e2e", "benchmarks/results"))] == []


def test_wheel_content(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(info).decode()
        points = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
    code = {name.removeprefix("warmlane/") for name in names if ".dist-info/" not in name}
    compiled = {name for name in code if name.endswith(".so")}
    assert code - compiled == package_files(SHIPPED)
    sources = {name.removesuffix(".pyx") for name in package_files((".pyx",))}
    if not any(name.startswith("_core/h2/") for name in compiled):
        assert not has_nghttp2(), "libnghttp2 is here: the native transport belongs in the wheel"
        sources = {name for name in sources if not name.startswith("_core/h2/")}
    assert {name.split(".")[0] for name in compiled} == sources
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "warmlane = warmlane.router.cli:main" in points


def test_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    run([python, "-m", "pip", "install", "-q", wheel], tmp_path)
    said = use(python, tmp_path)
    assert "imported warmlane._core.radix" in said
    assert "routed to http://127.0.0.1:8000" in said
    version = run([python.parent / "warmlane", "--version"], tmp_path).stdout
    assert version.startswith("warmlane ")
    run([python, "-m", "pip", "check"], tmp_path)


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_other_interpreters(version: str, sdist: Path, tmp_path: Path) -> None:
    """The debug build: checked, and quick to compile."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"Python {version} runs this test: covered by the wheel")
    python = find_python(version)
    if python is None:
        pytest.skip(f"Python {version} is not on this machine")
    inside = make_venv(tmp_path / "venv", python)
    env = {"WARMLANE_DEBUG": "1"}
    run([inside, "-m", "pip", "install", "-q", sdist], tmp_path, env=env)
    assert "routed to http://127.0.0.1:8000" in use(inside, tmp_path)


def test_a_missing_core_is_loud(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    command = [sys.executable, "-c", "import warmlane._core.radix"]
    done = run(command, tmp_path, env={"PYTHONPATH": str(tmp_path / "src")}, check=False)
    assert done.returncode == 1
    assert "compiled core is missing" in done.stdout.splitlines()[-1]
    assert "make build" in done.stdout


def test_lost_links_stop_the_build(tmp_path: Path) -> None:
    """Git without symbolic links checks a link out as a small text file."""
    link = copy_tree(tmp_path) / "src" / "warmlane" / "_core"
    link.unlink()
    link.write_text("../../src_ext")
    done = run([sys.executable, "setup.py", "build_ext"], tmp_path, check=False)
    assert done.returncode == 1
    assert "must be a link to src_ext/" in done.stdout and "core.symlinks" in done.stdout


def keep_smallest_module(tree: Path) -> str:
    """Leave one Cython module that needs no other; return its name."""
    sources = sorted((tree / "src_ext").glob("*.pyx"), key=lambda path: path.stat().st_size)
    alone = [path for path in sources if "cimport warmlane" not in path.read_text()]
    alone = [path for path in alone if "from warmlane" not in path.read_text()]
    for path in (*sources, *(tree / "src_ext" / "h2").glob("*.pyx")):
        if path != alone[0]:
            path.unlink()
    return alone[0].stem


def test_without_libnghttp2_the_rest_is_built_and_said(tmp_path: Path) -> None:
    """No silent half build: left out with a word, or an error where it was asked for."""
    tree = copy_tree(tmp_path / "tree")
    name = keep_smallest_module(tree)
    out = tmp_path / "out"
    tool = tmp_path / "no-pkg-config"
    tool.write_text("#!/bin/sh\nexit 1\n")
    tool.chmod(0o755)
    compiler = tmp_path / "cc-without-nghttp2"
    real = os.environ.get("CC", "cc")
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-lnghttp2*) exit 1;; esac\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    env = {"PKG_CONFIG": str(tool), "CC": str(compiler)}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", out]
    said = run(command, tree, env=env).stdout
    assert "libnghttp2" in said and "grpcio serves instead" in said
    assert list(out.glob(f"warmlane/_core/{name}.*.so"))
    assert not list(out.glob("warmlane/_core/h2/*.so"))
    done = run(command, tree, env=env | {"WARMLANE_H2": "1"}, check=False)
    assert done.returncode == 1 and "WARMLANE_H2=1 asks for it" in done.stdout


@pytest.mark.parametrize(
    ("switch", "effect"),
    [
        ("DEBUG", "-O0"),
        ("TRACE", "-DCYTHON_TRACE=1"),
        ("NATIVE", "-march=native"),
        ("SANITIZE", "-fsanitize=address,undefined"),
        ("ANNOTATE", ""),
    ],
)
def test_build_switches(switch: str, effect: str, tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    name = keep_smallest_module(tree)
    out = tmp_path / "out"
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", out]
    done = run(command, tree, env={f"WARMLANE_{switch}": "1"})
    assert effect in done.stdout
    assert list(out.glob(f"warmlane/_core/{name}.*.so"))
    assert (tree / "src_ext" / f"{name}.html").exists() == (switch == "ANNOTATE")


def test_the_default_build_is_portable(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    keep_smallest_module(tree)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "out"]
    said = run(command, tree).stdout
    assert "-O3" in said and "-march" not in said and "-mavx" not in said


def test_generated_c_compiles_for_aarch64(tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None:
        pytest.skip("no aarch64-linux-gnu-gcc here (Debian: apt install gcc-aarch64-linux-gnu)")
    tree = copy_tree(tmp_path)
    run([sys.executable, "-c", CYTHONIZE], tree)
    include = run([sys.executable, "-c", INCLUDE], tree).stdout.strip()
    sources = sorted((tree / "src_ext").glob("*.c"))
    pure = [name for name in package_files((".pyx",)) if "/h2/" not in name]  # needs a library
    assert len(sources) == len(pure)
    for source in sources:
        run([compiler, "-std=c11", "-fsyntax-only", f"-I{include}", "-Isrc_ext", source], tree)


INCLUDE = "import sysconfig; print(sysconfig.get_path('include'))"
CYTHONIZE = """
from Cython.Build import cythonize
cythonize("src/warmlane/_core/*.pyx", include_path=["src"], quiet=True)
"""


def test_make_says_what_is_missing(tmp_path: Path) -> None:
    """No compiler: one clear line and no half-made environment."""
    command = ["make", "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
    done = run(command, ROOT, env={"CC": "no-such-compiler"}, check=False)
    assert done.returncode != 0
    assert "no C compiler (no-such-compiler) found" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_make_help_lists_the_targets() -> None:
    said = run(["make", "help"], ROOT).stdout
    for target in ("help", "run", "test", "test-vllm", "lint", "bench"):
        assert f"make {target} " in said
