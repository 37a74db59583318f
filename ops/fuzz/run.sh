#!/usr/bin/env bash
# Feeds damaged tars and pictures to shoal for so long, and keeps what it does not survive.
# Usage: ops/fuzz/run.sh SECONDS [FINDINGS] [SEED] [FILE...]      default: a new folder under /tmp, a seed of the clock
#
# The corpus: the shards with damage and one of photographs, a tar with pax headers and long names, and FILEs (pictures or
# tars). A process that ends by a signal, by the limit of its memory or by its watch leaves the input that it was at: it is kept as
# crash-N, and the next process goes on. Exit code 1 if there is anything in FINDINGS at the end. FUZZ_BIN names the fuzzer
# where it is built already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:?usage: ops/fuzz/run.sh SECONDS [FINDINGS] [SEED] [FILE...]}
findings=${2:-$(mktemp -d /tmp/shoal-fuzz.XXXXXX)}
seed=${3:-$(date +%s)}
shift $(($# < 3 ? $# : 3))
mkdir -p "$findings"

fuzzer=${FUZZ_BIN:-}
if [[ -z $fuzzer ]]; then
  built=$(cargo bench --no-run --bench fuzz 2>&1) || { echo "$built" >&2; exit 2; }
  fuzzer=$(sed -n 's/.*Executable .*(\(.*\))$/\1/p' <<<"$built" | tail -n 1)
fi

corpus=$(mktemp -d /tmp/shoal-corpus.XXXXXX)
trap 'rm -r "$corpus"' EXIT
python3 - "$corpus" <<'PYTHON'
import io, sys, tarfile

for name, layout in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("ustar", tarfile.USTAR_FORMAT)):
    with tarfile.open(f"{sys.argv[1]}/{name}.tar", "w", format=layout) as tar:
        for i in range(12):
            folder = "" if layout == tarfile.USTAR_FORMAT else "long/" * 30 * (i % 3)
            member = tarfile.TarInfo(f"{folder}sample-{i}.jpg")
            data = b"\xff\xd8\xff\xe0" + bytes(200 * i)
            member.size = len(data)
            if layout == tarfile.PAX_FORMAT:
                member.pax_headers = {"size": str(len(data)), "comment": "größe"}
            tar.addfile(member, io.BytesIO(data))
PYTHON

ends=$(($(date +%s) + seconds))
crashes=0
while left=$((ends - $(date +%s))) && ((left > 0)); do
  status=0
  MALLOC_ARENA_MAX=1 nice -n 19 "$fuzzer" "$left" "$findings" --seed "$seed" \
    "$corpus"/*.tar shards/damage*.tar shards/photos-000000.tar "$@" || status=$?
  seed=$((seed + 1))
  if ((status > 1)); then
    crashes=$((crashes + 1))
    mv "$findings/current" "$findings/crash-$crashes"
    echo "fuzz: ended with status $status at $findings/crash-$crashes" >&2
  fi
done
rm -f "$findings/current"
[[ -z $(ls "$findings") ]]
