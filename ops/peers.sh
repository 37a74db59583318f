#!/usr/bin/env bash
# Makes .peers: a Python environment with the programs that shoal is compared with (PyTorch, torchvision, scikit-learn,
# faiss, webdataset, TensorBoard), for the interop tests and the benches. Nothing else needs it. Where apt-get is, Prometheus' promtool is
# unpacked into it, and Chromium is installed for root: without them the tests that need them say that they were left out.
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

# promtool needs nothing but glibc: its package works from any folder.
unpack_promtool() {
  [[ ! -x $peers/bin/promtool ]] || return 0
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  local folder
  folder=$(mktemp -d)
  (cd "$folder" && { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } && dpkg-deb -x prometheus_*.deb .) \
    >/dev/null 2>&1 </dev/null && cp "$folder/usr/bin/promtool" "$peers/bin/promtool"
  local outcome=$?
  rm -rf "$folder"
  return "$outcome"
}

find_chromium() {
  ! command -v chromium >/dev/null || return 0
  [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 1
  echo "peers: installing Chromium with apt-get (100 MB)" >&2
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 </dev/null
}

programs() {
  unpack_promtool || echo "peers: there is no promtool: the test of metrics does without" >&2
  find_chromium || echo "peers: there is no Chromium: the test of the live page in a browser is left out (apt-get install chromium)" >&2
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
  programs
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
"$peers/bin/python" -c 'import torch, torchvision, safetensors, sklearn, faiss, webdataset, tensorboard, PIL, playwright, prometheus_client' ||
  fail "what was installed cannot be imported, see above"
programs
printf '%s\n' "$wanted" >"$stamp"
echo "peers: ready in $((SECONDS - seconds)) s, $(du -sh "$peers" | cut -f1)" >&2
