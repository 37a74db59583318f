#!/usr/bin/env bash
# Makes .peers: a Python environment with the programs that shoal is compared with (PyTorch, torchvision, scikit-learn,
# faiss, webdataset, TensorBoard), for the interop tests and the benches. Nothing else needs it.
#
# The first run downloads about 3 GB (5 GB on disk, three minutes on a fast line), since `import torch` from PyPI wants
# its whole CUDA set, even on a machine without a GPU; later runs see from a stamp that nothing is to be done. An
# interrupted run is simply started again.
#
# Needs Python 3.10 or newer (PYTHON=... chooses which) with venv.
set -euo pipefail
cd "$(dirname "$0")/.."

peers=.peers
requirements=ops/interop/requirements.txt
python=${PYTHON:-python3}
unset PYTHONPATH PYTHONHOME LD_LIBRARY_PATH

fail() {
  printf 'peers: %s\n' "$@" >&2
  exit 2
}

command -v "$python" >/dev/null || fail "no $python found" "install Python 3.10 or newer, or name one: PYTHON=python3.12 ops/peers.sh"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$python" --version) is too old" "install Python 3.10 or newer, or name one: PYTHON=python3.12 ops/peers.sh"

wanted=$("$python" - "$requirements" <<'PYTHON'
import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read() + sys.version.encode()).hexdigest())
PYTHON
)
stamp=$peers/installed.sha256
if [[ -x $peers/bin/python && -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
  echo "peers: $peers is as $requirements says" >&2
  exit 0
fi

"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  fail "$python cannot make environments: its venv or ensurepip is missing" "on Debian or Ubuntu: apt-get install python3-venv"

free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
((free_kib > 10 * 1024 * 1024)) || fail "10 GB of free disk are needed here, $((free_kib / 1024 / 1024)) GB are left"

echo "peers: installing $requirements into $peers (about 3 GB to download, 5 GB on disk, three minutes on a fast line)" >&2
seconds=$SECONDS
rm -f "$stamp"
"$python" -m venv --clear "$peers"
"$peers/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar off -r "$requirements"
"$peers/bin/python" -c 'import torch, torchvision, safetensors, sklearn, faiss, webdataset, tensorboard, PIL' ||
  fail "what was installed cannot be imported, see above"
printf '%s\n' "$wanted" >"$stamp"
echo "peers: ready in $((SECONDS - seconds)) s, $(du -sh "$peers" | cut -f1)" >&2
