#!/usr/bin/env bash
# k-means of shoal beside faiss-cpu and scikit-learn from the same start, with a bare torch.matmul as a measure.
# Usage: ops/bench/clustering.sh [--cases 200000x1000,...] [--kinds mixture,noise] [--features FILE.arrow] [--rounds 3]
#
# Needs what ops/setup.sh and ops/peers.sh install. Data are generated into $DATA (default /tmp/shoal-clustering), up to
# 1 GB. All cases take half an hour on 2 cores. The table goes to stdout, and to the end of the file that --results names.
set -euo pipefail
cd "$(dirname "$0")/../.."

data=${DATA:-/tmp/shoal-clustering}
python=${PYTHON:-.peers/bin/python}
[[ -x $python ]] || { echo "clustering: no $python: run ops/peers.sh first, or name one with PYTHON" >&2; exit 2; }
mkdir -p "$data"

binary=$(PYTHON=$python ops/bench/binary.sh clustering)
"$python" ops/bench/clustering.py "$binary" "$data" "$@"
