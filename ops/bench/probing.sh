#!/usr/bin/env bash
# Probing conv1 to conv5 of AlexNet on photographs: `shoal eval probes`, one pass over the data for all layers, beside the plain way in
# PyTorch (a DataLoader with torchvision's transforms, a forward pass, one linear layer), one layer after the other as the paper's
# code does it, and with all layers hooked in one pass. Seconds an epoch over 450 photographs of shards/, test included.
# Usage: ops/bench/probing.sh [--rounds 2] [--epochs 3] [--images 450]; see ops/bench/probing.py
#
# Needs what ops/setup.sh and ops/peers.sh install. Half an hour on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

data=${DATA:-/tmp/shoal-probing}
python=${PYTHON:-.peers/bin/python}
[[ -x $python ]] || { echo "probing: no $python: run ops/peers.sh first, or name one with PYTHON" >&2; exit 2; }
mkdir -p "$data"

[[ -n ${LIBTORCH:-} || ! -d .libtorch/torch ]] || export LIBTORCH=$PWD/.libtorch/torch
cargo build --quiet --release --locked
"$python" ops/bench/probing.py target/release/shoal "$data" "$@"
