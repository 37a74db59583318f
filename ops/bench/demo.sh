#!/usr/bin/env bash
# The demo's pipeline as a measurement: images a second, share of time by stage, peak memory. Some four minutes on two cores.
#
#   ops/bench/demo.sh [ARGUMENT of shoal pretrain...]      e.g. --set device.threads=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
nproc
python3 - target/release/shoal pretrain demo --run "$run" --no-bar "$@" <<'PYTHON'
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL).returncode
print(f"peak memory {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB, exit code {code}")
PYTHON
