#!/usr/bin/env bash
# Install libnghttp2 and its header where this machine lets us: `make native`, CI and the image.
# Exit status 0 when they are there in the end.
set -uo pipefail

there() {
    echo '#include <nghttp2/nghttp2.h>' | "${CC:-cc}" -E -xc - >/dev/null 2>&1
}

there && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y --no-install-recommends libnghttp2-dev >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends libnghttp2-dev; }
elif [ "$(id -u)" -eq 0 ] && command -v dnf >/dev/null; then
    dnf install -y -q --enablerepo=crb libnghttp2-devel || dnf install -y -q libnghttp2-devel
elif [ "$(id -u)" -eq 0 ] && command -v apk >/dev/null; then
    apk add --no-cache -q nghttp2-dev
fi
there && exit 0
echo "install_nghttp2: libnghttp2 and its header are missing and cannot be installed from here" \
    "(Debian: apt install libnghttp2-dev, Fedora: dnf install libnghttp2-devel)" >&2
exit 1
