#!/usr/bin/env bash
#SBATCH --job-name=deeplab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Trains on GPU nodes, and goes on in the next job when the time limit comes first:
#
#   sbatch --nodes=2 scripts/train_slurm.sh deeplab train --config FILE --workdir DIR ...
#
# sbatch's arguments win over the lines above. One task a node takes all of its GPUs. One task a GPU
# works too, such as --ntasks-per-node=8 --cpus-per-task=4: task k of a node takes GPU k, so every
# task must see all GPUs of its node (no --gpus-per-task, no binding). slurm-JOB.log has the job's
# own lines; each task writes to LOGS/JOB-TASK.log (default: runs/slurm), on a disk all nodes see.
#
# 300 seconds before the limit every task gets SIGTERM, saves and ends, and the job is requeued.
# MAX_RESTARTS (default 10) bounds the requeues after a death. A mistake (exit code 2, 3, 4 or 6, no
# such command) ends the job; `scancel` ends it too. Slurm itself requeues preempted jobs and those
# whose node failed.
set -uo pipefail # no -e: exit codes are what this script works with

say() { printf '[slurm] %s\n' "$1"; }

if [[ ${1:---help} == @(-h|--help) ]]; then
  sed -n '/^# Trains/,/^set/s/^# \{0,1\}//p' "$0"
  (($#)) && exit
  echo "error: COMMAND: is missing - sbatch scripts/train_slurm.sh deeplab train --config FILE" >&2
  exit 2
elif [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "error: SLURM_JOB_ID: is not set - submit this with sbatch" >&2
  exit 2
fi
logs=${LOGS:-runs/slurm} restarts=${SLURM_RESTART_COUNT:-0} is_limit=''
errors=$logs/$SLURM_JOB_ID.errors
mkdir -p "$logs" || exit 5

on_limit() { # not by a signal to srun, which would take it for its own
  is_limit=yes
  say "the time limit is near: the tasks are asked to save and end"
  scancel --signal=TERM "$SLURM_JOB_ID.0" || say "scancel failed: they go on until the limit"
}
trap on_limit USR1
trap 'say "cancelled: waiting for the tasks"' TERM # `scancel JOB` signals them as well
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over from sbatch
# --wait, not --kill-on-bad-exit: that would kill tasks that still save when the first has ended.
srun --output="$logs/%j-%t.log" --open-mode=append --kill-on-bad-exit=0 --wait=600 \
  "$@" 2>"$errors" &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a trap ends a `wait`
wait "$step"
code=$?
cat "$errors" >&2
# srun's own code is the largest of all tasks. Its first line tells which task failed first, and how.
first=$(grep -m 1 -E '^srun: error: .*: tasks? ' "$errors")
case $((code > 0))$first in
  0*) ;;
  *'Exited with exit code '*) code=${first##* } ;;
  1?*) code=137 ;; # "Killed" and the like
esac

if ((code == 143)) && [[ -n $is_limit ]]; then
  why="saved before the time limit"
elif [[ " 0 2 3 4 6 126 127 130 143 " == *" $code "* ]]; then # done, a mistake, or stopped
  say "exit code $code; see $logs"
  exit "$code"
elif ((restarts >= ${MAX_RESTARTS:-10})); then
  say "exit code $code after $restarts restarts: giving up; see $logs"
  exit "$code"
else
  why="a task ended with exit code $code"
fi
say "$why: requeued, restart $((restarts + 1))"
scontrol requeue "$SLURM_JOB_ID"
