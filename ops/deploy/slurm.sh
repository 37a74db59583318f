#!/usr/bin/env bash
# One run of shoal on a Slurm cluster, for as long as it takes: a task per GPU, and the job queues itself again where its time is up or
# a rank is lost. The run goes on from its last snapshot.
#
#   sbatch ops/deploy/slurm.sh PIPELINE RUN [more arguments of shoal pretrain]
#   sbatch --nodes 4 --time 12:00:00 ops/deploy/slurm.sh yfcc100m-alexnet /shared/runs/yfcc --set train.batch_size=512
#
#   scancel --batch --signal=TERM JOB    ends it for good: a snapshot first, in as much time as that takes
#   scancel JOB                          ends it at once: srun, which gets the signal too, kills its tasks, and what came after the last
#                                        snapshot (snapshot.every_minutes) is lost
#
# PIPELINE, RUN and the shards must be where every node sees them. The Stop button of the page writes a snapshot, and the job comes back.
#
#SBATCH --job-name=shoal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
# As many as tasks. Not --gpus-per-task: NCCL copies between GPUs directly where every task sees all of its node, and shoal takes one each.
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# One log for all starts of the job.
#SBATCH --open-mode=append
# Slurm queues it again itself when a node fails or another job takes its place.
#SBATCH --requeue
# Five minutes before the time is up this script, and not srun's tasks, gets a signal of its own: so it can tell the end of its time from
# scancel, which sends TERM.
#SBATCH --signal=B:USR1@300
set -euo pipefail

if (($# < 2)); then
  echo "usage: sbatch $0 PIPELINE RUN [more arguments of shoal pretrain]" >&2
  exit 2
fi
pipeline=$1 run=$2
shift 2

shoal=${SHOAL:-shoal}
# Starts in a row that bring no new snapshot, until it is left for somebody to look at. The end of a job's time is not among them, since
# a snapshot is written then.
max_restarts=${MAX_RESTARTS:-5}
counter=$run/slurm-restarts

say() { printf 'slurm: %s\n' "$1" >&2; }

stopped='' signalled=''
# To the tasks directly: srun would kill them if it got the TERM.
ask_to_stop() {
  signalled=1
  scancel --signal=TERM "$SLURM_JOB_ID" || say "scancel could not reach the ranks"
}
trap 'say "the time is nearly up: asking for a snapshot"; ask_to_stop' USR1
trap 'stopped=1; say "cancelled: asking for a snapshot"; ask_to_stop' TERM

newest() { readlink "$run/latest" || true; }

mkdir -p "$run"
before=$(newest)

# srun does not take it from the job by itself.
cpus=()
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || cpus=(--cpus-per-task="$SLURM_CPUS_PER_TASK")

# In the background, since bash runs no trap while it waits for a program in front. The first rank to end with 130 has the others killed:
# by then all parts of the snapshot are on disk.
srun --kill-on-bad-exit=1 --label "${cpus[@]}" "$shoal" pretrain "$pipeline" --run "$run" --no-bar "$@" &
step=$!
while true; do
  signalled='' code=0
  wait "$step" || code=$?
  # A signal ends the wait, not the step.
  [[ -n $signalled ]] || break
done

# srun gives the highest exit code of its tasks, and 128 and the signal's number for one that was killed.
if [[ $code == 130 ]]; then
  reason="interrupted, with a snapshot"
elif [[ $code == 4 ]] || ((code > 128)); then
  reason="a rank was lost (exit code $code)"
else
  # Done, or an error that another start does not mend: 2 is the command line or pipeline, 3 the data.
  rm -f "$counter"
  exit "$code"
fi
if [[ -n $stopped ]]; then
  say "$reason; cancelled, so it does not come back by itself"
  exit "$code"
fi

restarts=0
if [[ $(newest) == "$before" && -f $counter ]]; then
  restarts=$(<"$counter")
fi
if ((restarts >= max_restarts)); then
  say "$reason; no new snapshot in $restarts restarts, so it does not come back by itself: look into the log above"
  rm -f "$counter"
  exit "$code"
fi
echo "$((restarts + 1))" >"$counter"
say "$reason; back into the queue"
# Slurm ends this script when it has done so.
scontrol requeue "$SLURM_JOB_ID"
