#!/usr/bin/env bash
# What a cycle costs beside the steps between two, from measured parts; and PCA with whitening beside numpy and scikit-learn.
# With --parts overlap, what a clustering beside training costs its steps.
# Usage: ops/bench/cycle.sh [--rows 100000] [--steps 6] [--results FILE]; see ops/bench/cycle.py
#
# Needs what ops/setup.sh and ops/peers.sh install, 8 GB of memory and 1 GB in $DATA (default /tmp/shoal-cycle). 15 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

data=${DATA:-/tmp/shoal-cycle}
python=${PYTHON:-.peers/bin/python}
[[ -x $python ]] || { echo "cycle: no $python: run ops/peers.sh first, or name one with PYTHON" >&2; exit 2; }
mkdir -p "$data"

binary=$(PYTHON=$python ops/bench/binary.sh clustering)
[[ -n ${LIBTORCH:-} || ! -d .libtorch/torch ]] || export LIBTORCH=$PWD/.libtorch/torch
cargo build --quiet --release --locked
"$python" ops/bench/cycle.py "$binary" target/release/shoal "$data" "$@"
