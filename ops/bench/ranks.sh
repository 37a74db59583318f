#!/usr/bin/env bash
# What it costs to be several: ranks on the loopback of one machine, beside a bare loop over c10d and beside one process.
# Usage: ops/bench/ranks.sh [--rounds 3] [--parts reduce,small,overhead,kmeans] [--constants FILE]; see ops/bench/ranks.py
#
# Needs what ops/setup.sh and ops/peers.sh install. A quarter of an hour on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-.peers/bin/python}
[[ -x $python ]] || { echo "ranks: no $python: run ops/peers.sh first, or name one with PYTHON" >&2; exit 2; }

[[ -n ${LIBTORCH:-} || ! -d .libtorch/torch ]] || export LIBTORCH=$PWD/.libtorch/torch
cargo build --quiet --release --locked
binary=$(PYTHON=$python ops/bench/binary.sh ranks)
"$python" ops/bench/ranks.py "$binary" "$@"
