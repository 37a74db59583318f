#!/usr/bin/env bash
# Sets up, then runs every test. The tests are built as releases are: they train, and one build of the dependencies serves
# them, the demo and the program. Arguments go to cargo: ops/test.sh --test it pipelines::
#
# The first run downloads libtorch (0.6 GB) and compiles for some minutes. The interop tests against PyTorch run where
# ops/peers.sh has made .peers, and are left out elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

./ops/setup.sh
export PATH="$PWD/.tools/bin:$PATH"

if [[ -z ${SHOAL_PEERS:-} && -x .peers/bin/python ]]; then
  export SHOAL_PEERS="$PWD/.peers"
fi
if [[ -n ${SHOAL_PEERS:-} ]]; then
  echo "test: with the interop tests, by $SHOAL_PEERS" >&2
else
  echo "test: without the interop tests: there is no .peers, which ops/peers.sh makes (3 GB)" >&2
fi

exec cargo test --release --locked "$@" </dev/null
