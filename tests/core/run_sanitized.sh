#!/usr/bin/env bash
# Fuzz the compiled core under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tests/core/run_sanitized.sh [SECONDS a target] [PYTHON] [PATTERN]
#
# Builds a sanitized copy of the extensions in .cache/sanitized (the checkout's own build stays as
# it is; a second run builds only what changed), then runs every tests/core/fuzz_*.py of the
# pattern for the given time: `fuzz_x.py --seconds N`. Needs gcc with libasan and libubsan. Any report
# ends the run with a status other than 0. Leaks are not looked for: Python itself keeps memory.
set -euo pipefail

seconds=${1:-10}
python=${2:-python3}
pattern=${3:-fuzz_*.py}
root=$(cd "$(dirname "$0")/../.." && pwd)
copy="$root/.cache/sanitized"

asan=$(gcc -print-file-name=libasan.so)
ubsan=$(gcc -print-file-name=libubsan.so)
[ -e "$asan" ] && [ -e "$ubsan" ] || { echo "run_sanitized: gcc has no libasan or libubsan"; exit 3; }

mkdir -p "$copy"
exec 9>"$copy/lock"
flock 9
for part in setup.py pyproject.toml src router scorers envoy; do
    rm -rf "${copy:?}/$part"
    cp -a "$root/$part" "$copy/$part"
done
for room in src_ext src_ext/h2; do
    mkdir -p "$copy/$room"
    cp -pu "$root/$room"/*.{py,pyx,pxd,pyi,h} "$copy/$room/"
    for old in "$copy/$room"/*.{pyx,pxd,h}; do
        [ -e "$root/$room/${old##*/}" ] || rm -f "$old" "${old%.*}".*.so
    done
done
touch "$copy/README.md"
if ! (cd "$copy" && WARMLANE_SANITIZE=1 "$python" setup.py -q build_ext --inplace -j 2) \
    >"$copy/build.log" 2>&1; then
    tail -n 30 "$copy/build.log"
    exit 1
fi
flock -u 9

export LD_PRELOAD="$asan $ubsan"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONMALLOC=malloc PYTHONSAFEPATH=1 PYTHONPATH="$copy/src:$root"
for target in "$root"/tests/core/$pattern; do
    echo "== ${target##*/}"
    "$python" "$target" --seconds "$seconds"
done
echo "run_sanitized: no report"
