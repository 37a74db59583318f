#!/usr/bin/env bash
# Fuzzes the readers of archives and the decoders of pictures, guided by coverage (libFuzzer, by cargo-fuzz).
# Usage: ops/fuzz/coverage.sh SECONDS [archive|picture]...      default: both, one after the other, for so many seconds each
#
# Installs cargo-fuzz into .tools the first time, and builds everything once more with counters: ten to twenty minutes on two cores.
# Seeds are the damaged shards, small tars of photographs plain and wrapped, and the photographs; what it learns is kept in
# ops/fuzz/coverage/corpus, what it finds in ops/fuzz/coverage/artifacts. Inputs that take more than 20 s or 2 GiB are findings too.
# Exit code 1 if there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:?usage: ops/fuzz/coverage.sh SECONDS [archive|picture]...}
shift
targets=("$@")
[[ ${#targets[@]} -gt 0 ]] || targets=(archive picture)

./ops/setup.sh
export PATH="$PWD/.tools/bin:$PATH" LIBTORCH=${LIBTORCH:-$PWD/.libtorch/torch}
export LD_LIBRARY_PATH="$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# the flags of coverage are unstable: the stable compiler takes them when it is told to
export RUSTC_BOOTSTRAP=1
command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked --root .tools

folder=ops/fuzz/coverage
cp Cargo.lock "$folder/Cargo.lock"
python3 - "$folder/corpus" <<'PYTHON'
import gzip, io, sys, tarfile, zipfile
from pathlib import Path

root = Path(sys.argv[1])
for name in ("archive", "picture"):
    (root / name).mkdir(parents=True, exist_ok=True)
photographs = []
with tarfile.open("shards/photos-000000.tar") as shard:
    for member in shard:
        if member.name.endswith(".jpg") and len(photographs) < 12:
            photographs.append((member.name, shard.extractfile(member).read()))
for name, data in photographs:
    (root / "picture" / name.replace("/", "-")).write_bytes(data)
small = io.BytesIO()
with tarfile.open(fileobj=small, mode="w") as tar:
    for name, data in photographs[:3]:
        member = tarfile.TarInfo(name)
        member.size = 700
        tar.addfile(member, io.BytesIO(data[:700]))
archives = {"small.tar": small.getvalue(), "small.tar.gz": gzip.compress(small.getvalue())}
packed = io.BytesIO()
with zipfile.ZipFile(packed, "w") as zipped:
    for method, (name, data) in zip((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), photographs):
        zipped.writestr(zipfile.ZipInfo(name), data[:700], method)
archives["small.zip"] = packed.getvalue()
for path in Path("shards").glob("damage*.tar"):
    archives[path.name] = path.read_bytes()[:32768]
for name, data in archives.items():
    (root / "archive" / name).write_bytes(data)
PYTHON

status=0
for target in "${targets[@]}"; do
  nice -n 15 cargo fuzz run --fuzz-dir "$folder" --release --sanitizer none "$target" -- \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 || status=1
done
exit "$status"
