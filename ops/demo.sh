#!/usr/bin/env bash
# From a fresh clone to clusters of photographs: sets up, builds, trains the small network of pipelines/demo.toml for about
# four minutes on the photographs in shards/, and draws what it found. Under 15 minutes on two cores, most of it the build.
# Stop it at any time and start it again: it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=runs/demo
sheet=$run/clusters.png
shoal=target/release/shoal
start=$SECONDS

say() { printf '\ndemo: %s\n' "$1" >&2; }

./ops/setup.sh
export PATH="$PWD/.tools/bin:$PATH"

say "building (some 6 minutes the first time on two cores)"
cargo build --release --locked </dev/null
built=$SECONDS

if [[ -e $run/latest ]]; then
  say "$run is there already and goes on, or is done; to start anew: rm -r $run"
else
  say "training on the photographs in shards/ (about 4 minutes; Ctrl-C keeps what is learnt)"
fi
"$shoal" pretrain pipelines/demo.toml --run "$run"
trained=$SECONDS

say "drawing the clusters"
"$shoal" show sheet --run "$run" --out "$sheet"
"$shoal" inspect "$run"

cat >&2 <<EOF

demo: done in $(((SECONDS - start + 59) / 60)) minutes: $((built - start)) s to set up and build, $((trained - built)) s to train.

A small network has grouped the photographs of shards/photos-*.tar without being told what is on them, and learnt to tell
its groups apart. Here is what it left:

  $sheet  the clusters, a row each: look at this first
  $run/metrics.jsonl  a line for each step and cycle
  $run/tensorboard/   the same as curves, and pictures: tensorboard --logdir $run
  $run/snapshots/     everything needed to go on
  $run/ledger.jsonl   photographs that could not be read, and why

What to try next:

  $shoal serve $run                                          the run in the browser: curves, clusters, filters
  $shoal pretrain demo --run runs/sobel --set model.input=sobel        edges instead of colour: other clusters
  $shoal pretrain fashion                                            a measured one, in a few minutes
  $shoal shards pack FOLDER --out mine.tar                           your own photographs, as shards
  $shoal export $run --to safetensors --out demo.safetensors     the weights, for Python
EOF
