#!/usr/bin/env bash
# A long stream over a server that fails in every way, killed again and again: every sample must come exactly once, and memory stay flat.
# Usage: ops/soak/soak.sh [MINUTES] [--set KEY=VALUE]...       default: 60
#
# The photographs of shards/ are served under many names by ops/soak/server.py; ops/soak/soak.rs streams and decodes them at
# SOAK_RATE images/s (300) and is killed with SIGKILL every SOAK_KILL_S seconds or so (120) during the first 40 % of the
# time; afterwards it is left alone, so that a leak would show. ops/soak/check.py looks at the result every ten minutes
# and at the end. Everything lies in SOAK_FOLDER (a new folder under /tmp): report.txt at the end, also on stdout.
# SOAK_FAULTS scales how often a request goes wrong (1; 0: never); SOAK_SEED fixes what goes wrong (1).
# SOAK_BIN names the driver where it is built already; SOAK_NICE is how it gives way to others (10). Exit code 1 unless all is well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

minutes=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  minutes=$1
  shift
fi
settings=("$@")
rate=${SOAK_RATE:-300}
kill_s=${SOAK_KILL_S:-120}
nice=${SOAK_NICE:-10}
folder=${SOAK_FOLDER:-$(mktemp -d /tmp/shoal-soak.XXXXXX)}
mkdir -p "$folder/shards" "$folder/run"
rm -f "$folder/port"
echo "soak: $minutes minutes in $folder" >&2

driver=${SOAK_BIN:-}
if [[ -z $driver ]]; then
  built=$(cargo bench --no-run --bench soak 2>&1) || { echo "$built" >&2; exit 2; }
  driver=$(sed -n 's/.*Executable .*(\(.*\))$/\1/p' <<<"$built" | tail -n 1)
fi

python3 ops/soak/make_shards.py "$folder/shards" shards/photos-00000?.tar
reference=("$folder"/shards/photos-*.tar "$folder/shards/large.tar" "$folder/shards/packed.tar.gz" "$folder/shards/short.tar")
joined=$(printf '::%s' "${reference[@]}")
nice -n "$nice" "$driver" "$folder/reference" "${joined:2}" --once

nice -n "$nice" python3 ops/soak/server.py "$folder/shards" "$folder/port" "$folder/server.json" \
  --seed "${SOAK_SEED:-1}" --faults "${SOAK_FAULTS:-1}" &
server=$!
run=
sampler=
trap '{ [[ -z $run ]] || kill -9 "$run"; kill "$server" $sampler; } 2>/dev/null || true' EXIT
for _ in $(seq 100); do
  [[ -s $folder/port ]] && break
  sleep 0.1
done
url="http://127.0.0.1:$(cat "$folder/port")"
{
  for view in $(seq -f '%03g' 0 7); do
    for photos in shards/photos-00000?.tar; do echo "$url/v$view-${photos#shards/}"; done
  done
  for view in $(seq -f '%03g' 0 3); do echo "$url/v$view-large.tar"; done
  for view in $(seq -f '%03g' 0 1); do echo "$url/v$view-packed.tar.gz"; done
  echo "$url/gone.tar"
  echo "$url/short.tar"
} >"$folder/list.txt"

start() {
  nice -n "$nice" "$driver" "$folder/run" "@$folder/list.txt" --rate "$rate" ${settings[@]+"${settings[@]}"} \
    2>>"$folder/driver.log" &
  run=$!
  echo "$run" >"$folder/pid"
}

sample_memory() {
  local pid size
  while sleep 10; do
    pid=$(cat "$folder/pid")
    size=$(awk '/^VmRSS/ {print $2}' "/proc/$pid/status" 2>/dev/null || true)
    [[ -z $size ]] || echo "$(date +%s) $pid $size" >>"$folder/rss.log"
  done
}

check() {
  python3 ops/soak/check.py "$folder" "$folder/shards" "$folder/list.txt"
}

begun=$(date +%s)
ends=$((begun + minutes * 60))
kills_until=$((begun + minutes * 24))
next_kill=$((begun + kill_s))
next_check=$((begun + 600))
RANDOM=${SOAK_SEED:-1}
start
sample_memory &
sampler=$!

while now=$(date +%s) && ((now < ends)); do
  sleep 1
  if ! kill -0 "$run" 2>/dev/null; then
    status=0
    wait "$run" || status=$?
    echo "ended $now with status $status: $(tail -n 1 "$folder/driver.log")" >>"$folder/events.log"
    sleep 5
    start
  elif ((now >= next_kill && now < kills_until)); then
    kill -9 "$run"
    wait "$run" 2>/dev/null || true
    echo "kill $now" >>"$folder/events.log"
    next_kill=$((now + kill_s / 2 + RANDOM % kill_s))
    start
  fi
  if ((now >= next_check)); then
    next_check=$((now + 600))
    check >"$folder/report-so-far.txt" || true
  fi
done

kill -TERM "$run"
status=0
wait "$run" || status=$?
run=
((status == 0)) || echo "ended at the end with status $status" >>"$folder/events.log"
sleep 4 # the server's last report
check | tee "$folder/report.txt"
