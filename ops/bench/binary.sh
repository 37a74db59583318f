#!/usr/bin/env bash
# Builds one of the benches of Cargo.toml and prints where its program is. Usage: ops/bench/binary.sh NAME
# PYTHON names the Python that reads what cargo says (default .peers/bin/python).
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ -n ${LIBTORCH:-} || ! -d .libtorch/torch ]] || export LIBTORCH=$PWD/.libtorch/torch
cargo bench --quiet --bench "$1" --no-run --message-format=json |
    "${PYTHON:-.peers/bin/python}" -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$1"
