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
set -euo pipefail

say() { printf '[slurm] %s\n' "$1"; }

# shellcheck disable=SC2329 # traps call these two
# Asks all tasks to save and end. Not by a signal to srun, which would take it for its own.
on_limit() {
  is_interrupted=yes is_limit=yes
  say "the time limit is near: the tasks are asked to save and end"
  scancel --signal=TERM "$SLURM_JOB_ID.0" || say "scancel failed: they go on until the limit"
}

# shellcheck disable=SC2329
# Of `scancel JOB`, which signals the tasks as well: they have until Slurm kills them.
on_cancel() {
  is_interrupted=yes
  say "cancelled: waiting for the tasks"
}

# Waits for srun; returns its code.
wait_for_step() {
  local code
  while true; do
    is_interrupted='' code=0
    wait "$step" || code=$?
    [[ -n $is_interrupted ]] || return "$code" # else a signal ended the waiting, not the step
  done
}

# CODE: the exit code of the task that failed first, as srun reports it; CODE, that of srun and so
# the largest of all, where it says nothing.
first_code() {
  local report
  report=$(grep -m 1 -E '^srun: error: .*: tasks? ' "$errors" || true)
  case $report in
    *'Exited with exit code '*) echo "${report##* }" ;;
    '') echo "$1" ;;
    *) echo 137 ;; # "Killed" and the like
  esac
}

requeue() {
  say "$1: requeued, restart $((${SLURM_RESTART_COUNT:-0} + 1))"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

main() {
  local logs=${LOGS:-runs/slurm} code=0 count=${SLURM_RESTART_COUNT:-0}
  if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '/^# Trains/,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'
    (($# > 0)) && exit 0
    echo "error: COMMAND: is missing - sbatch scripts/train_slurm.sh deeplab train --config FILE" >&2
    exit 2
  fi
  if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "error: SLURM_JOB_ID: is not set - submit this with sbatch" >&2
    exit 2
  fi
  mkdir -p "$logs"
  errors=$logs/$SLURM_JOB_ID.errors
  # srun does not take it over from sbatch by itself.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  is_limit=''
  trap on_limit USR1
  trap on_cancel TERM
  # --wait, not --kill-on-bad-exit: that would kill tasks that still save when the first has ended.
  srun --output="$logs/%j-%t.log" --open-mode=append --kill-on-bad-exit=0 --wait=600 \
    "$@" 2>"$errors" &
  step=$!
  wait_for_step || code=$?
  cat "$errors" >&2
  if ((code == 0)); then
    say "done"
    exit 0
  fi
  code=$(first_code "$code")
  # A mistake that the limit meets would be made again.
  if [[ -n $is_limit && $code == 143 ]]; then requeue "saved before the time limit"; fi
  if [[ " 2 3 4 6 126 127 130 143 " == *" $code "* ]]; then
    say "exit code $code: not requeued; see $logs"
  elif ((count < ${MAX_RESTARTS:-10})); then
    requeue "a task ended with exit code $code"
  else
    say "exit code $code after $count restarts: giving up; see $logs"
  fi
  exit "$code"
}

main "$@"
