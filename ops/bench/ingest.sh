#!/usr/bin/env bash
# Photographs per second from tars into batches: shoal beside WebDataset, SPDL, LitData and a bare loop over libjpeg-turbo.
# Usage: ops/bench/ingest.sh [--rounds 3] [--seconds 4]        about 11 minutes on 2 cores, a few more the first time
#
# Needs what ops/setup.sh and ops/peers.sh install; SPDL also needs ffmpeg's shared libraries (apt-get install ffmpeg) and is left
# out without them. The first call fetches 170 MB of wallpaper photographs from Debian (apt-get download) and cuts 2,000
# JPEGs of 500 pixels from them, into $DATA (default /tmp/shoal-ingest). The table goes to stdout and into RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/../.."

data=${DATA:-/tmp/shoal-ingest}
python=${PYTHON:-.peers/bin/python}
[[ -x $python ]] || { echo "ingest: no $python: run ops/peers.sh first, or name one with PYTHON" >&2; exit 2; }

packages=(mate-backgrounds plasma-workspace-wallpapers lomiri-wallpapers-20.04 lomiri-wallpapers-16.04)
if [[ ! -f $data/made ]]; then
    mkdir -p "$data/packages"
    for package in "${packages[@]}"; do
        [[ -d $data/packages/$package ]] && continue
        (cd "$data" && apt-get download --quiet "$package" && dpkg-deb --extract "$package"_*.deb "packages/$package.part")
        mv "$data/packages/$package.part" "$data/packages/$package"
    done
    "$python" ops/bench/ingest_data.py "$data/packages" "$data" | tee "$data/made.part" >&2
    mv "$data/made.part" "$data/made"
fi

binary=$(PYTHON=$python ops/bench/binary.sh ingest)
"$python" ops/bench/ingest.py "$binary" "$data" --results ops/bench/RESULTS.md "$@"
