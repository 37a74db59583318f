#!/usr/bin/env bash
# Photographs per second and core into two views, beside Pillow and OpenCV on the same files.
# Usage: ops/bench/decode.sh [SHARD.tar...]      default: shards/photos-*.tar
# The two take turns, so that a busy moment of the machine hits both. PYTHON names an interpreter with pillow, numpy and
# opencv-python-headless; without them the peers are left out, and the script says so.
set -euo pipefail
cd "$(dirname "$0")/../.."

shards=("$@")
if [ ${#shards[@]} -eq 0 ]; then
    shards=(shards/photos-*.tar)
fi
python=${PYTHON:-.peers/bin/python}
peers=yes
if ! "$python" -c 'import PIL, cv2, numpy' 2>/dev/null; then
    echo "no peers: $python has no pillow, numpy and opencv-python-headless (set PYTHON to one that has)" >&2
    peers=no
fi

for _ in 1 2 3; do
    cargo bench --quiet --bench decode -- --runs 3 "${shards[@]}"
    if [ "$peers" = yes ]; then
        "$python" ops/bench/decode_peer.py --runs 3 "${shards[@]}"
    fi
done
