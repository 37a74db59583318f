#!/usr/bin/env bash
# What the choices of a cycle do to what is learnt: Fashion-MNIST as a stream, one line a run in ops/bench/ablation.tsv. Runs whose
# line stands there already are left out, so that it can be stopped and started again. A run takes two to four minutes on two cores.
#
#   ops/bench/ablation.sh [SEED...]     by default 31 32 33; every choice with the first seed, then with the second, ...
#   STEPS=2000 SHOAL=path/to/shoal ops/bench/ablation.sh 31
#   JOBS=2 ops/bench/ablation.sh        two runs at once, each on its share of the cores: a quarter more of them in an hour
#   ops/bench/ablation.py               the table of means, as Markdown
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

steps=${STEPS:-1000}
shoal=${SHOAL:-target/release/shoal}
runs=${RUNS:-runs/ablation}
jobs=${JOBS:-1}
threads=$(($(nproc) / jobs))
export OMP_NUM_THREADS=$threads RAYON_NUM_THREADS=$threads
table=ops/bench/ablation.tsv
lists=(--train shards/fashion-train.tar.zst --test shards/fashion-test.tar.zst)
seeds=("$@")
[[ ${#seeds[@]} -gt 0 ]] || seeds=(31 32 33)

# The cut of the grid: head by cycle in full, the others one at a time around `reset`, 250.
choices=()
for head in reset match centroids; do
  for cycle in 50 150 470; do choices+=("$head $cycle weight 200"); done
done
choices+=("reset 250 weight 200" "reset 250 sample 200" "reset 250 none 200" "reset 250 weight 50" "reset 250 weight 1000")

accuracy() { # PROBE RUN
  "$shoal" eval "$1" --snapshot "$2" "${lists[@]}" --json 2>/dev/null |
    python3 -c 'import json, sys; print("%.2f" % (100 * json.load(sys.stdin)["accuracy"]))'
}

# measure NAME SEED HEAD CYCLE BALANCE K: one run, its probes, its line.
measure() {
  local name=$1 seed=$2 head=$3 cycle=$4 balance=$5 k=$6
  local run=$runs/${name//$'\t'/-} last
  rm -rf "$run"
  "$shoal" pretrain fashion --run "$run" --no-bar --set "train.steps=$steps" --set "stream.seed=$seed" \
    --set "train.head=$head" --set "cluster.every_steps=$cycle" --set "train.balance=$balance" --set "cluster.k=$k" \
    --set snapshot.every_steps=0 --set "device.threads=$threads" --set "device.decode_threads=$threads" \
    >/dev/null 2>"$run.log" || { echo "failed: $name, see $run.log" >&2; return; }
  last=$(python3 - "$run/metrics.jsonl" <<'PY'
import json, sys
cycles = [line for line in map(json.loads, open(sys.argv[1])) if line["kind"] == "cycle"]
previous = cycles[-1].get("nmi_prev")
print("%.4f\t%s" % (cycles[-1]["nmi_labels"], "" if previous is None else "%.4f" % previous))
PY
)
  printf '%s\t%s\t%s\t%s\n' "$name" "$(accuracy knn "$run")" "$(accuracy linear "$run")" "$last" |
    tee -a "$table" >&2
  rm -rf "$run"
}

mkdir -p "$runs"
[[ -f $table ]] || printf 'steps\tseed\thead\tcycle\tbalance\tk\tknn\tlinear\tnmi_labels\tnmi_prev\n' >"$table"
for seed in "${seeds[@]}"; do
  for choice in "${choices[@]}"; do
    read -r head cycle balance k <<<"$choice"
    name=$steps$'\t'$seed$'\t'$head$'\t'$cycle$'\t'$balance$'\t'$k
    if grep -qF "$name"$'\t' "$table"; then continue; fi
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
    measure "$name" "$seed" "$head" "$cycle" "$balance" "$k" &
  done
done
wait
