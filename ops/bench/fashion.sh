#!/usr/bin/env bash
# What is learnt from Fashion-MNIST as a stream without labels: k-NN and linear accuracy of frozen features, of trained
# against untrained weights of the same network, for three seeds. Prints a Markdown table; some 20 minutes on two cores.
#
#   ops/bench/fashion.sh [SEED...]      runs are kept in runs/fashion-SEED, and go on where they were
#   LAYER=conv4 ops/bench/fashion.sh    of another layer than the feature that is clustered
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seeds=("$@")
[[ ${#seeds[@]} -gt 0 ]] || seeds=(31 32 33)
shoal=target/release/shoal
lists=(--train shards/fashion-train.tar.zst --test shards/fashion-test.tar.zst)
layer=()
[[ -z ${LAYER:-} ]] || layer=(--layer "$LAYER")

# accuracy PROBE SNAPSHOT SEED
accuracy() {
  "$shoal" eval "$1" --snapshot "$2" --pipeline pipelines/fashion.toml --set "stream.seed=$3" "${layer[@]}" "${lists[@]}" \
    --json 2>/dev/null | python3 -c 'import json, sys; print("%.1f" % (100 * json.load(sys.stdin)["accuracy"]))'
}

echo "| seed | weights | k-NN | linear |"
echo "|---|---|---|---|"
for seed in "${seeds[@]}"; do
  run=runs/fashion-$seed
  "$shoal" pretrain fashion --run "$run" --set "stream.seed=$seed" --no-bar >&2
  echo "| $seed | untrained | $(accuracy knn random:small "$seed") | $(accuracy linear random:small "$seed") |"
  echo "| $seed | trained | $(accuracy knn "$run" "$seed") | $(accuracy linear "$run" "$seed") |"
done
