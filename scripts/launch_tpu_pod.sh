#!/usr/bin/env bash
# Runs one command on every host of a TPU slice, and again after a preemption or a host's death.
# docs/pods.md leads through it; --help says what it takes. It runs where `gcloud` is, not on a host.
set -euo pipefail

POLL=0.2                              # seconds between two looks at the hosts
SETTLE=${LAUNCH_SETTLE:-3}            # seconds in which hosts that fail together may say why
SLICE_POLL=${LAUNCH_SLICE_POLL:-30}   # seconds between two looks at a slice that is not ready
SLICE_WATCH=${LAUNCH_SLICE_WATCH:-60} # seconds between two looks at one that runs
HEALTHY=1800                          # a run of so many seconds starts the count of restarts anew
LOST=71                               # stands for the exit code of a host that can no longer be asked

usage() {
  cat <<'END'
usage: scripts/launch_tpu_pod.sh --tpu NAME --zone ZONE [options] -- COMMAND ARGUMENTS...
       scripts/launch_tpu_pod.sh --hosts ssh:HOST,HOST,... [options] -- COMMAND ARGUMENTS...
       scripts/launch_tpu_pod.sh --hosts local:N [options] -- COMMAND ARGUMENTS...

Runs the same command on every host, restarts it when hosts die, stops it cleanly.

hosts:
  --tpu NAME --zone ZONE   the slice; --project PROJECT unless it is gcloud's default
  --hosts ssh:A,B          machines that `ssh A` reaches without a question
  --hosts local:N          N processes on this machine stand in for hosts
                           (ssh and local: --coordinator, --num-processes and --process-id are
                           appended to the command; on a slice JAX finds them itself)
options:
  --dir DIR                where the command starts on each host (default: the home folder;
                           local: here)
  --setup FILE             shell script that runs on each host before every start of the command,
                           in the home folder (local: --dir): install, mount; a new or rebooted
                           host lacks both
  --logs DIR               one file for each host (default: runs/launch/NAME)
  --max-restarts N         restarts in a row, default 5; 30 minutes of running end a row
  --backoff SECONDS        wait before the first restart, default 10; doubled up to 5 minutes
  --grace SECONDS          until what does not end on SIGTERM after a failure is killed, default 60
  --port PORT              of the coordinator (ssh, local); default: another at each start
  --gcloud-flag FLAG       added to `gcloud ... ssh`, such as --internal-ip; may be repeated
  --recreate TYPE --version VERSION [--spot] [--create-flag FLAG]
                           a slice that is missing or was preempted is deleted and created anew,
                           such as --recreate v5litepod-16 --version v2-alpha-tpuv5-lite --spot
  --stop                   no command: ask what runs on these hosts to save and end, and wait for
                           it (Ctrl-C ends the waiting alone); a launcher that still lives ends
                           too, at the latest with its next start on the same hosts
  -h, --help

Ctrl-C or SIGTERM asks the command on all hosts to save and end, and waits; a second one kills it.
Not restarted: exit codes 2, 3, 4, 6 (a mistake), 126, 127 (no such command), 130 (stopped).

examples:
  scripts/launch_tpu_pod.sh --tpu pod --zone europe-west4-b --dir deeplab_jax -- \
      .venv/bin/deeplab train --config configs/ade20k_r50_os16.py --workdir /mnt/shared/runs/ade \
      --config.data.root=/mnt/shared/data --config.init.backbone=/mnt/shared/weights/r50_v1c
  scripts/launch_tpu_pod.sh --hosts local:2 -- deeplab train --config configs/quickstart.py
END
}

say() { printf '[launch] %s\n' "$1" || true; } # the terminal may be gone

# WHERE WHAT FIX [CODE]
fail() {
  printf 'error: %s: %s - %s\n' "$1" "$2" "$3" >&2
  exit "${4:-2}"
}

# ---- What runs on a host. Sent there as text, so these know nothing of the rest of this file.

# PID: when that process started, which tells it from a later one of the same number.
started() {
  if [[ -r /proc/$1/stat ]]; then
    sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20
  else
    ps -o lstart= -p "$1"
  fi 2>/dev/null || true
}

# RECORD: whether the process that it names still runs; sets $pid, $token.
is_alive() {
  local start
  pid='' token='' start=''
  [[ -f $1 ]] && read -r pid token start <"$1" && [[ -n $start && $(started "$pid") == "$start" ]]
}

# KEY TOKEN GRACE DIR COMMAND...: runs a command in a process group of its own; the last line of
# its output is its exit code, because an ssh client's own code cannot be told from a command's.
host_run() {
  local key=$1 mine=$2 grace=$3 dir=$4 code=0 end pid token
  local folder=${XDG_CACHE_HOME:-$HOME/.cache}/deeplab_jax/launch
  local record=$folder/$key
  shift 4
  finish() {
    printf '\n[launch %s] exit code %s\n' "$mine" "$1"
    exit 0 # another code would make gcloud start the command again
  }
  mkdir -p "$folder"
  if is_alive "$record" && [[ ${token%%.*} != "${mine%%.*}" ]]; then
    echo "error: $(uname -n): process $pid of another launch runs here - stop it with --stop" >&2
    finish 2
  fi
  if [[ $token == "$mine" ]]; then # gcloud repeats what a lost connection cut off
    echo "the connection was lost, and the command with it"
    finish 71
  fi
  if is_alive "$record"; then
    echo "ending process $pid, left from before"
    kill -TERM -- "-$pid" 2>/dev/null || true
    end=$((SECONDS + grace))
    while kill -0 -- "-$pid" 2>/dev/null && ((SECONDS < end)); do sleep 0.2; done
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  # Whether the launcher (host_signal), or somebody else (host_stop), wants this to end.
  is_told() { [[ -f $record.stop && $(<"$record.stop") == "$mine" ]]; }
  is_over() { [[ -f $record.over && $(<"$record.over") == "${mine%%.*}" ]]; }
  cd -- "$dir" || finish 2
  is_told && finish 143
  is_over && finish 130
  rmdir "$record.asked" 2>/dev/null || true
  set -m # a process group for the command
  "$@" </dev/null &
  pid=$!
  set +m
  echo "$pid $mine $(started "$pid")" >"$record"
  # Asked to stop between the two looks: whoever asks writes first and reads the record then.
  if is_told || is_over; then ask_to_end "$record"; fi
  wait "$pid" || code=$?
  end=$((SECONDS + grace)) # what the command started may still be saving
  while kill -0 -- "-$pid" 2>/dev/null && ((SECONDS < end)); do sleep 0.2; done
  kill -KILL -- "-$pid" 2>/dev/null || true
  if is_over && ((code > 128)); then code=130; fi
  finish "$code"
}

# KEY TOKEN SIGNAL: signals the command that was started with that token.
host_signal() {
  local key=$1 mine=$2 number=$3 pid token
  local record=${XDG_CACHE_HOME:-$HOME/.cache}/deeplab_jax/launch/$key
  mkdir -p "${record%/*}"
  echo "$mine" >"$record.stop"
  is_alive "$record" && [[ $mine == "$token" ]] || return 0
  echo "$(uname -n): sending SIG$number to process $pid"
  if [[ $number == TERM ]]; then ask_to_end "$record"; else kill "-$number" -- "-$pid"; fi
}

# RECORD: asks command $pid to save and end; once, as a second time would end it unsaved.
ask_to_end() { if mkdir "$1.asked" 2>/dev/null; then kill -TERM -- "-$pid"; fi; }

# KEY: asks whatever runs to save and end, and waits until it has. Its launcher, which may still
# live, is told so by the exit code: it does not start the command again.
host_stop() {
  local record=${XDG_CACHE_HOME:-$HOME/.cache}/deeplab_jax/launch/$1 pid='' token=''
  is_alive "$record" || true
  [[ -z $token ]] || echo "${token%%.*}" >"$record.over"
  if ! is_alive "$record"; then # a look after the writing: host_run does both the other way round
    echo "$(uname -n): nothing runs"
    return
  fi
  ask_to_end "$record"
  echo "$(uname -n): process $pid is asked to save and end"
  while kill -0 -- "-$pid" 2>/dev/null; do sleep 0.2; done
  echo "$(uname -n): process $pid has ended"
}

# FUNCTION ARGUMENTS...: that call as one word of shell, for a host.
on_host() {
  local call
  printf -v call '%q ' "$@"
  printf 'bash -c %q' "$(declare -f started is_alive host_run host_signal ask_to_end host_stop); set -u; $call"
}

# ---- What runs here.

# HOST TEXT: runs a line of shell on a host.
reach() {
  local alive=(-oConnectTimeout=20 -oServerAliveInterval=15 -oServerAliveCountMax=4)
  case $backend in
    local) bash -c "$2" ;;
    ssh) ssh -n -oBatchMode=yes "${alive[@]}" "${names[$1]}" "$2" ;;
    tpu)
      gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" "--worker=$1" --quiet \
        "${alive[@]/#/--ssh-flag=}" ${gcloud_flags[@]+"${gcloud_flags[@]}"} "--command=$2"
      ;;
  esac </dev/null
}

# PHASE COMMAND...: runs a command on all hosts; sets $outcome to the exit code that counts.
run_everywhere() {
  local host token folder=$dir first='' watched=$SECONDS
  phase_token=$launch_id.$attempt.$1
  [[ $1 == run || $backend == local ]] || folder=. # which the setup may have to make
  shift
  running=$count
  set -m # own process groups: Ctrl-C is ours to hand on
  for ((host = 0; host < count; host++)); do
    token=$phase_token
    rm -f "$scratch/ended.$host"
    local line=("$@")
    if [[ $token == *.run && $backend != tpu ]]; then
      line+=(--coordinator "$coordinator" --num-processes "$count" --process-id "$host")
    fi
    run_host "$host" "$(on_host host_run "$key-$host" "$token" "$grace" "$folder" "${line[@]}")" &
    clients[host]=$!
  done
  set +m
  while look && ((running > 0)); do
    if [[ -z $first && $failed != 0 ]]; then
      first=$SECONDS # the others are told to stop, once those that fail by themselves have
    fi
    if [[ -n $first ]] && ((SECONDS >= first + SETTLE)) && [[ -z $stopping ]]; then
      break
    fi
    [[ -z $stopping || -n $told ]] || tell TERM
    [[ $stopping != now ]] || kill_rest
    if [[ $backend == tpu ]] && ((SECONDS >= watched + SLICE_WATCH)); then
      watched=$SECONDS
      slice_state 2>/dev/null
      [[ $state != @(MISSING|PREEMPTED|TERMINATED|STOPPED) ]] || abandon "the slice is $state"
    fi
    nap
  done
  outcome=$failed
  if ((running > 0)); then
    say "stopping the other hosts"
    tell TERM
    wait_for_rest "$grace" || kill_rest
  fi
}

# HOST TEXT: one host's client, from its start to the file that says that it ended.
run_host() {
  local log=$logs/host-$1.log
  printf '[launch %s] host %s, %s\n' "$phase_token" "$1" "$(date)" >>"$log"
  if (($1 == 0)); then
    reach "$1" "$2" 2>&1 | tee "${tee_flags[@]}" "$log" || true # shown as well
  else
    reach "$1" "$2" >>"$log" 2>&1 || true
  fi
  : >"$scratch/ended.$1"
}

# Counts the hosts that run ($running) and finds the code of those that ended ($failed): that of
# a mistake before that of a death, which may be its consequence.
look() {
  local host code
  running=0 failed=0 codes=''
  for ((host = 0; host < count; host++)); do
    if [[ ! -e $scratch/ended.$host ]]; then
      running=$((running + 1))
      continue
    fi
    code=$(sed -n "s/^\[launch $phase_token\] exit code //p" "$logs/host-$host.log" | tail -n 1)
    code=${code:-$LOST}
    codes+=" $host:$code"
    if ((code != 0)) && { ((failed == 0)) || is_mistake "$code"; }; then failed=$code; fi
  done
}

is_mistake() { [[ " 2 3 4 6 126 127 130 " == *" $1 "* ]]; }

# SIGNAL: sends it to the command on all hosts that have not ended, at the same time.
tell() {
  local host
  told=$1
  for ((host = 0; host < count; host++)); do
    [[ ! -e $scratch/ended.$host ]] || continue
    reach "$host" "$(on_host host_signal "$key-$host" "$phase_token" "$1")" \
      >>"$logs/host-$host.log" 2>&1 &
  done
}

# SECONDS: waits for the hosts; false when some still run.
wait_for_rest() {
  local end=$((SECONDS + $1))
  while look && ((running > 0)); do
    if ((SECONDS >= end)) || [[ $stopping == now ]]; then return 1; fi
    nap
  done
}

# Kills the command on the hosts that still run, then the clients of hosts that do not answer.
kill_rest() {
  local host
  say "killing what is left"
  [[ $stopping == now ]] && stopping=killed
  tell KILL
  wait_for_rest 20 || abandon "it does not answer"
}

# WHY: ends the clients of the hosts that still run; these hosts count as dead.
abandon() {
  local host
  for ((host = 0; host < count; host++)); do
    [[ ! -e $scratch/ended.$host ]] || continue
    kill -KILL -- "-${clients[host]}" 2>/dev/null || true
    : >"$scratch/ended.$host"
    say "host $host is given up: $1"
  done
  look
}

nap() { sleep "$POLL" || true; }

# SECONDS: waits, unless asked to stop.
pause() {
  local end=$((SECONDS + $1))
  while [[ -z $stopping ]] && ((SECONDS < end)); do nap; done
}

# SIGNAL CODE: what the first and the second request to stop do.
on_signal() {
  if [[ -z $stopping ]]; then
    stopping=yes stop_code=$2
    say "SIG$1: the command is asked to save and end, after compiling if it is; again to kill it"
  else
    stopping=now
  fi
}

# ---- The slice.

gcloud_tpu() { gcloud compute tpus tpu-vm "$1" "$tpu" "${where[@]}" "${@:2}"; }

# Sets $state to the slice's, MISSING, or UNKNOWN when gcloud cannot tell.
slice_state() {
  if state=$(gcloud_tpu describe '--format=value(state)' 2>"$scratch/describe"); then
    state=${state:-UNKNOWN}
  elif grep -q -e NOT_FOUND -e 'was not found' "$scratch/describe"; then
    state=MISSING
  else
    state=UNKNOWN
    cat "$scratch/describe" >&2
  fi
}

# Returns once the slice is ready: waits for it, or creates it where that was asked for.
prepare_slice() {
  local shown='' since=$SECONDS
  while [[ -z $stopping ]]; do
    slice_state
    case $state in
      READY) break ;;
      MISSING | PREEMPTED | TERMINATED)
        if [[ -n $recreate ]]; then
          create_slice || return 1
          continue
        elif [[ $state == MISSING ]]; then
          fail "$tpu" "there is no such slice in ${where[*]}" \
            "create it as docs/pods.md shows, correct --tpu or --zone, or add --recreate"
        fi
        ;;
      UNKNOWN)
        if ((attempt == 0)) && [[ -z $stopping ]]; then
          fail "$tpu" "gcloud cannot describe it" "see its message above" 5
        fi
        ;;
    esac
    if [[ $state != "$shown" ]] || ((SECONDS - since >= 600)); then
      say "slice $tpu is $state: waiting until it is READY$(advice)"
      shown=$state since=$SECONDS
    fi
    pause "$SLICE_POLL"
  done
}

advice() {
  case $state in
    PREEMPTED | TERMINATED)
      echo "; it does not come back by itself: delete and create it under the same name, or stop" \
        "this and add --recreate"
      ;;
    STOPPED) echo "; start it: gcloud compute tpus tpu-vm start $tpu ${where[*]}" ;;
  esac
}

create_slice() {
  if [[ $state != MISSING ]]; then
    say "slice $tpu is $state: deleting it"
    gcloud_tpu delete --quiet || return 1
  fi
  say "creating slice $tpu: $recreate, $version"
  gcloud_tpu create "--accelerator-type=$recreate" "--version=$version" \
    ${create_flags[@]+"${create_flags[@]}"}
}

# Sets $count to the number of hosts.
count_hosts() {
  local addresses
  addresses=$(gcloud_tpu describe '--flatten=networkEndpoints[]' \
    '--format=value(networkEndpoints.ipAddress)') || return 1
  count=$(grep -c . <<<"$addresses") || return 1
}

# Sets $coordinator to the first host with a port that nothing listens on, as far as we can see.
choose_coordinator() {
  local host=127.0.0.1 number=$port
  [[ $backend == local ]] || host=${names[0]##*@}
  while [[ -z $number ]]; do
    number=$((20000 + RANDOM % 12000))
    if [[ $backend == local ]] && (: <"/dev/tcp/$host/$number") 2>/dev/null; then number=''; fi
  done
  coordinator=$host:$number
}

# ---- From the arguments to the end.

parse() {
  backend='' tpu='' zone='' project='' dir='' setup='' logs='' max_restarts=5 backoff=10 grace=60
  port='' recreate='' version='' is_stop='' spec=''
  names=() gcloud_flags=() create_flags=() command=()
  while (($# > 0)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --stop) is_stop=yes && shift && continue ;;
      --spot) create_flags+=(--spot) && shift && continue ;;
      --) shift && command=("$@") && break ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
    esac
    [[ $1 == --* ]] || fail "$1" "is no argument" "write -- before the command"
    (($# > 1)) || fail "$1" "has no value, or is no argument" "see --help"
    case $1 in
      --tpu) tpu=$2 ;;
      --zone) zone=$2 ;;
      --project) project=$2 ;;
      --hosts) spec=$2 ;;
      --dir) dir=$2 ;;
      --setup) setup=$2 ;;
      --logs) logs=$2 ;;
      --max-restarts) max_restarts=$2 ;;
      --backoff) backoff=$2 ;;
      --grace) grace=$2 ;;
      --port) port=$2 ;;
      --recreate) recreate=$2 ;;
      --version) version=$2 ;;
      --gcloud-flag) gcloud_flags+=("$2") ;;
      --create-flag) create_flags+=("$2") ;;
      *) fail "$1" "there is no such argument" "see --help" ;;
    esac
    shift 2
  done
}

check() {
  local name number
  for name in max_restarts backoff grace port; do
    number=${!name}
    [[ $number =~ ^[0-9]*$ ]] && [[ -n $number || $name == port ]] ||
      fail "--${name/_/-}" "must be a whole number, got '$number'" "see --help"
  done
  if [[ -n $tpu && -n $spec ]]; then
    fail "--hosts" "is given beside --tpu" "give one of them"
  elif [[ -n $tpu ]]; then
    backend=tpu
  elif [[ $spec =~ ^local:([1-9][0-9]*)$ ]]; then
    backend=local count=${BASH_REMATCH[1]}
  elif [[ $spec =~ ^ssh:[^-,] ]]; then
    backend=ssh
    IFS=, read -r -a names <<<"${spec#ssh:}"
    count=${#names[@]}
  elif [[ -n $spec ]]; then
    fail "--hosts" "must be local:N or ssh:HOST,HOST, got '$spec'" "see --help"
  else
    fail "--tpu" "is missing" "name the slice, or --hosts; see --help"
  fi
  if [[ -z $is_stop ]] && ((${#command[@]} == 0)); then
    fail "COMMAND" "is missing" "write it after --, such as -- deeplab train --config FILE"
  fi
  if [[ $backend == tpu ]]; then
    [[ -n $zone ]] || fail "--zone" "is missing" "name the slice's zone, such as europe-west4-b"
    where=("--zone=$zone" ${project:+"--project=$project"})
    command -v gcloud >/dev/null ||
      fail "gcloud" "is not on the PATH" "install the Google Cloud CLI and run gcloud init" 5
  fi
  if [[ -n $recreate && ($backend != tpu || -z $version) ]]; then
    fail "--recreate" "needs --tpu and --version" "such as --version v2-alpha-tpuv5-lite"
  fi
  if [[ -z $recreate ]] && ((${#create_flags[@]} > 0)); then
    fail "${create_flags[0]}" "says how a slice is created" "add --recreate TYPE, or leave it out"
  fi
  [[ -z $setup || -r $setup ]] || fail "--setup" "cannot read '$setup'" "name a shell script"
  logs=${logs:-runs/launch/${tpu:-${spec//[:,@]/-}}}
  mkdir -p "$logs" || fail "$logs" "cannot be written" "choose another --logs" 5
  [[ $backend == local ]] && dir=${dir:-$PWD}
  dir=${dir:-.}
  # What tells this launch's processes from others on the same hosts.
  key=${tpu:-$spec}
  [[ $backend != local ]] || key+=:$(cd "$logs" && pwd)
  key=$(cksum <<<"$key")
  key=${key%% *}
  launch_id=$(date +%s)-$$
}

# Asks what runs on the hosts to save and end, and waits for it.
stop_hosts() {
  local host missed=''
  [[ $backend != tpu ]] || count_hosts ||
    fail "$tpu" "gcloud cannot describe it" "see its message above" 5
  for ((host = 0; host < count; host++)); do
    reach "$host" "$(on_host host_stop "$key-$host")" &
    clients[host]=$!
  done
  for ((host = 0; host < count; host++)); do
    wait "${clients[host]}" || missed+=" ${names[host]:-$host}"
  done
  [[ -z $missed ]] ||
    fail "hosts$missed" "could not be asked, or the connection was lost meanwhile" "try again" 5
}

# One start on all hosts; sets $outcome.
attempt_run() {
  outcome=$LOST codes='' began=''
  if [[ $backend == tpu ]]; then
    prepare_slice && [[ -z $stopping ]] && count_hosts || return 0
  fi
  [[ $backend == tpu ]] || choose_coordinator
  told=''
  if [[ -n $setup ]]; then
    say "setting up $count hosts"
    run_everywhere setup bash -c "$(<"$setup")"
    if ((outcome != 0)); then
      say "--setup failed (host:code$codes), see $logs"
      return 0
    fi
  fi
  [[ -z $stopping ]] || return 0
  say "starting on $count hosts; logs in $logs"
  told='' began=$SECONDS
  run_everywhere run "${command[@]}"
}

main() {
  local restarts=0 delay
  parse "$@"
  check
  clients=() stopping='' stop_code=0 told='' running=0 failed=0 codes='' attempt=0
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  trap '' PIPE # a reader of our output that leaves, as in `... | head`, ends nothing
  tee_flags=(-a)
  tee -p </dev/null >/dev/null 2>&1 && tee_flags+=(-p)
  if [[ -n $is_stop ]]; then
    stop_hosts
    exit 0
  fi
  trap 'on_signal INT 130' INT
  trap 'on_signal TERM 143' TERM
  trap 'on_signal HUP 143' HUP
  delay=$backoff
  while true; do
    attempt_run
    if [[ $stopping == killed ]]; then
      say "killed (host:code$codes); the same command goes on from the last save"
      exit "$stop_code"
    elif [[ -n $stopping ]]; then
      say "stopped (host:code$codes); the same command goes on"
      exit "$stop_code"
    elif ((outcome == 130)); then
      say "stopped by --stop or on a host (host:code$codes); the same command goes on"
      exit 130
    elif ((outcome == 0)); then
      say "done"
      exit 0
    elif is_mistake "$outcome"; then
      say "exit code $outcome (host:code$codes): a restart would not help; see $logs"
      exit "$outcome"
    fi
    if ((SECONDS - ${began:-$SECONDS} >= HEALTHY)); then restarts=0 delay=$backoff; fi
    if ((restarts >= max_restarts)); then
      say "exit code $outcome (host:code$codes) after $restarts restarts in a row: giving up; see $logs"
      exit "$outcome"
    fi
    restarts=$((restarts + 1)) attempt=$((attempt + 1))
    say "ended (host:code$codes); restart $restarts of $max_restarts in $delay s"
    pause "$delay"
    delay=$((delay * 2 < 300 ? delay * 2 : 300))
    if [[ -n $stopping ]]; then exit "$stop_code"; fi
  done
}

main "$@"
