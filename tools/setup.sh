#!/bin/sh
# Sets up a checkout: what apt must bring, and a virtual environment in .venv.
#   tools/setup.sh run    to run the service and the demo
#   tools/setup.sh test   to run the tests and the benchmarks too
# Needs root or sudo only where something is missing that apt has.
set -eu
cd "$(dirname "$0")/.."
what=${1:-run}
python=${PYTHON:-python3}

missing=
need() { # need PACKAGE PROGRAM: the package, unless there is the program
  command -v "$2" >/dev/null 2>&1 || [ -x "/usr/sbin/$2" ] || missing="$missing $1"
}
need python3 "$python"
need openssh-client ssh
need iproute2 ip
need nftables nft
if [ "$what" = test ]; then
  need docker.io dockerd
  need docker-registry docker-registry
  need openssh-server sshd
  need gcc gcc
  need libc6-dev gcc
  need mmdebstrap mmdebstrap
  need git git
  need curl curl
  need openssl openssl
  need nginx-light nginx
  need caddy caddy
  need dropbear-bin dbclient
  need zsh zsh
  need fish fish
  need webhook webhook
  # Debian keeps its programs off the PATH.
  ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need postgresql initdb
fi
if command -v "$python" >/dev/null 2>&1 && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  missing="$missing python3-venv"
fi
if [ -n "$missing" ]; then
  sudo=
  [ "$(id -u)" = 0 ] || sudo=sudo
  command -v apt-get >/dev/null 2>&1 || {
    echo "setup: please install:$missing" >&2
    exit 1
  }
  echo "setup: apt-get install$missing"
  $sudo apt-get update -qq
  # A service that a package would start is not wanted: what needs one starts its own.
  DEBIAN_FRONTEND=noninteractive $sudo env RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: Python 3.11 or newer is needed; set PYTHON" >&2
  exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
if [ "$what" = test ]; then
  .venv/bin/pip install -q --disable-pip-version-check --editable . --group test --group tools
  touch .venv/.run .venv/.test
else
  .venv/bin/pip install -q --disable-pip-version-check --editable . --group kit
  touch .venv/.run
fi
