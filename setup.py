"""The Cython build and its switches; everything else is in pyproject.toml.

Switches (environment variables, "1" turns one on):
  WARMLANE_TRACE     line tracing, for coverage of .pyx files
  WARMLANE_ANNOTATE  an HTML page per module that shows where Python is still called
  WARMLANE_DEBUG     -O0 -g, bounds checks on
  WARMLANE_SANITIZE  AddressSanitizer and UndefinedBehaviorSanitizer
  WARMLANE_NATIVE    -march=native: faster here, not portable to an older CPU
  WARMLANE_H2        stop when libnghttp2 is missing, instead of leaving the native transport out
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent
LINKS = {"router": "router", "scorers": "scorers", "envoy": "envoy", "_core": "src_ext"}


def switch(name: str) -> bool:
    return os.environ.get(f"WARMLANE_{name}", "0") not in ("", "0")


def check_links() -> None:
    """Stop early when a checkout lost the links below src/warmlane (git's core.symlinks=false)."""
    for link, target in LINKS.items():
        path = HERE / "src" / "warmlane" / link
        if not path.is_dir():
            sys.exit(
                f"warmlane: src/warmlane/{link} must be a link to {target}/ (or, in a source "
                f"distribution, a folder). This checkout lost it: run\n"
                f"  git config core.symlinks true && git checkout -- src/warmlane\n"
            )


def nghttp2() -> dict[str, list[str]] | None:
    """How to compile and link with libnghttp2, or None where it is not installed.

    Asked of pkg-config; without it, of the compiler.
    """
    tool = os.environ.get("PKG_CONFIG") or shutil.which("pkg-config")
    if tool:
        ask = [tool, "--cflags", "--libs", "libnghttp2 >= 1.43"]
        done = subprocess.run(ask, capture_output=True, text=True)
        if done.returncode == 0:
            words = done.stdout.split()
            libs = [word for word in words if word.startswith(("-l", "-L"))]
            return {"cflags": [word for word in words if word not in libs], "ldflags": libs}
    compiler = os.environ.get("CC", "cc").split()
    test = "#include <nghttp2/nghttp2.h>\nint main(void) { return !nghttp2_version(0); }\n"
    ask = [*compiler, "-xc", "-", "-o", os.devnull, "-lnghttp2"]
    try:
        done = subprocess.run(ask, input=test, capture_output=True, text=True)
    except OSError:
        return None
    return {"cflags": [], "ldflags": ["-lnghttp2"]} if done.returncode == 0 else None


def headers_of(source: Path, root: Path) -> list[str]:
    """The headers of ours that a module reads, by #include, extern and cimport, at any depth."""
    found: set[Path] = set()
    open_ = [path for path in (source, source.with_suffix(".pxd")) if path.exists()]
    while open_:
        text = open_.pop().read_text(encoding="utf-8")
        names = re.findall(r'(?:#include|cdef extern from) "([\w/]+\.h)"', text)
        names += [
            f"{name.replace('.', '/')}.pxd"
            for name in re.findall(r"from warmlane\._core\.([\w.]+) cimport", text)
        ]
        for name in names:
            path = next((path for path in (root / name, root / "h2" / name) if path.exists()), None)
            if path is not None and path not in found:
                found.add(path)
                open_.append(path)
    return sorted(str(path) for path in found)


def h2_extensions(
    root: Path, cflags: list[str], ldflags: list[str], macros: list[tuple[str, str]]
) -> list[Extension]:
    """The native gRPC transport, all of it or (said aloud) nothing."""
    found = nghttp2()
    if found is None:
        wanted = switch("H2")
        print(
            "warmlane: libnghttp2 or its header is not installed: the native ext-proc transport is "
            "left out, grpcio serves instead (Debian: apt install libnghttp2-dev)",
            file=sys.stderr,
        )
        if wanted:
            sys.exit("warmlane: WARMLANE_H2=1 asks for it")
        return []
    return [
        Extension(
            f"warmlane._core.h2.{path.stem}",
            [str(path)],
            include_dirs=[str(root)],
            depends=headers_of(path, root),
            define_macros=macros,
            extra_compile_args=[*cflags, *found["cflags"]],
            extra_link_args=[*ldflags, *found["ldflags"]],
        )
        for path in sorted(root.glob("h2/*.pyx"))
    ]


def extensions() -> list[Extension]:
    debug, sanitize = switch("DEBUG"), switch("SANITIZE")
    cflags = ["-std=c11", "-fno-strict-aliasing", "-Wno-unreachable-code"]
    cflags += ["-O0", "-g3"] if debug else ["-O3", "-g1"]
    ldflags: list[str] = []
    if sanitize:
        cflags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g3", "-O1"]
        ldflags += ["-fsanitize=address,undefined"]
    if switch("NATIVE"):
        cflags += ["-march=native"]
    macros = [("CYTHON_TRACE", "1"), ("CYTHON_USE_SYS_MONITORING", "0")] if switch("TRACE") else []
    root = Path("src") / "warmlane" / "_core"
    return [
        Extension(
            f"warmlane._core.{path.stem}",
            [str(path)],
            include_dirs=[str(root)],
            depends=headers_of(path, root),
            define_macros=macros,
            extra_compile_args=cflags,
            extra_link_args=ldflags,
        )
        for path in sorted(root.glob("*.pyx"))
    ] + h2_extensions(root, cflags, ldflags, macros)


check_links()
checks = switch("DEBUG")
setup(
    options={"build_ext": {"parallel": os.cpu_count()}},
    ext_modules=cythonize(
        extensions(),
        include_path=["src"],
        annotate=switch("ANNOTATE"),
        compiler_directives={
            "language_level": 3,
            "boundscheck": checks,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": checks,
            "binding": True,
            "embedsignature": False,
            "linetrace": switch("TRACE"),
        },
    ),
)
