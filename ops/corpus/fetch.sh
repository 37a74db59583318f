#!/usr/bin/env bash
# Fetches test images of others, good and hostile: Pillow's (its source distribution on PyPI) and gdk-pixbuf's (Debian).
# Usage: ops/corpus/fetch.sh FOLDER      needs a Debian with apt, python3 with pip, and 60 MB
# The images stay outside of the repository: their licences are many.
set -euo pipefail

folder=${1:?usage: ops/corpus/fetch.sh FOLDER}
pillow=12.3.0
python=${PYTHON:-python3}
mkdir -p "$folder/work"
cd "$folder"

if [[ ! -d pillow ]]; then
  # pip unpacks the sources and then asks their build system for metadata, which is not there: the sources are all we want
  TMPDIR=$PWD/work "$python" -m pip download --quiet --no-clean --no-build-isolation --no-deps --no-binary :all: \
    --dest work "pillow==$pillow" >work/pip.log 2>&1 || true
  images=$(find work -type d -path '*/Tests/images' | head -n 1)
  [[ -n $images ]] || { tail work/pip.log >&2; exit 1; }
  mv "$images" pillow
fi
if [[ ! -d gdk-pixbuf ]]; then
  (cd work && apt-get download -q gdk-pixbuf-tests && dpkg -x gdk-pixbuf-tests_*.deb gdk)
  mv work/gdk/usr/libexec/installed-tests/gdk-pixbuf gdk-pixbuf
fi
rm -r work
echo "$(find pillow gdk-pixbuf -type f | wc -l) files in $PWD"
