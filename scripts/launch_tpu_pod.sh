#!/usr/bin/env bash
# usage: scripts/launch_tpu_pod.sh --tpu NAME --zone ZONE [options] -- COMMAND ARGUMENTS...
#        scripts/launch_tpu_pod.sh --hosts ssh:HOST,HOST,...|local:N [options] -- COMMAND ...
# Runs the command on each host of a slice, on machines that `ssh HOST` reaches without a question,
# or N times on this machine, and restarts it when hosts die; docs/pods.md leads through it. ssh and
# local: appends --coordinator, --num-processes and --process-id (a slice's hosts find each other).
#   --dir DIR               folder on each host to start in (default: home; local: here)
#   --setup FILE            shell script that hosts run before every start, in the home folder
#   --logs DIR              gets host-0.log, host-1.log, ... (default: runs/launch/NAME)
#   --max-restarts N        restarts in a row (default: 5); a run of 30 minutes ends the row
#   --port PORT             of the coordinator (default: another one at each start)
#   --gcloud-flags "FLAGS"  for `gcloud compute tpus tpu-vm ssh`, such as "--internal-ip"
#   --recreate "FLAGS"      creates a missing slice and replaces a preempted one by `gcloud compute
#                           tpus tpu-vm create` with these flags
#   --stop                  no command: what runs is asked to save and end, its launcher ends too
# Ctrl-C, SIGTERM or SIGHUP: asks the command to save and end; the second one kills it.
# Not restarted: exit codes 2, 3, 4, 6 (a mistake), 126, 127 (no such command), 130 (stopped).
set -uo pipefail # no -e: exit codes are what this script works with

BACKOFF=${LAUNCH_BACKOFF:-10}   # seconds before the first restart, doubled up to 300
HEALTHY=${LAUNCH_HEALTHY:-1800} # seconds of running that end a row of restarts
SETTLE=${LAUNCH_SETTLE:-3}      # seconds for hosts that fail together to end by themselves
GRACE=${LAUNCH_GRACE:-60}       # seconds from SIGTERM to SIGKILL after a failure
POLL=${LAUNCH_POLL:-30}         # seconds between two looks at a slice that is not ready

say() { printf '[launch] %s\n' "$1"; }
fail() { # WHERE WHAT FIX [CODE]
  printf 'error: %s: %s - %s\n' "$1" "$2" "$3" >&2
  exit "${4:-2}"
}
is_mistake() { [[ " 2 3 4 6 126 127 130 " == *" $1 "* ]]; }

# On a host, sent there as text: VERB KEY TOKEN [DIR COMMAND...], where TOKEN is LAUNCH.START.
# `run` returns the command's exit code; its shell takes USR1 as "save and end", USR2 as "kill".
host() {
  local pid='' last='' asked='' child='' code
  local record=${XDG_CACHE_HOME:-$HOME/.cache}/deeplab_jax/launch/$2 # PID TOKEN of the last `run`
  await() { # PID SECONDS
    local end=$((SECONDS + $2))
    while kill -0 -- "$1" 2>/dev/null && ((SECONDS < end)); do sleep 0.2; done
  }
  mkdir -p "${record%/*}"
  [[ $1 != stop ]] || : >"$record.stopped" # before reading the record: `run` goes the other way
  { read -r pid last <"$record"; } 2>/dev/null
  { cat "/proc/$pid/cmdline" || ps -wwo args= -p "$pid"; } 2>/dev/null | tr '\0' ' ' |
    grep -qF "host run $2 $last " || pid='' # its number may be another process's by now
  if [[ $1 == USR* ]]; then
    [[ -z $pid || $last != "$3" ]] || kill "-$1" "$pid"
  elif [[ $1 == stop && -z $pid ]]; then
    echo "$(uname -n): nothing runs"
  elif [[ $1 == stop ]]; then
    kill -USR1 "$pid" && echo "$(uname -n): process $pid is asked to save and end"
    await "$pid" 999999999 && echo "$(uname -n): process $pid has ended"
  elif [[ -n $pid && ${last%.*} != "${3%.*}" ]]; then
    echo "error: $(uname -n): process $pid of another launch runs here - stop it with --stop"
    return 2
  else
    if [[ -n $pid ]]; then
      echo "ending process $pid: the connection was lost"
      kill -USR1 "$pid" && await "$pid" "$GRACE"
      kill -USR2 "$pid" 2>/dev/null && await "$pid" 9
    fi
    [[ $last != "$3" ]] || return 71 # gcloud repeats a call that lost its connection
    # One SIGTERM only, as a second ends a command unsaved.
    trap '[[ -n $asked || -z $child ]] || kill -TERM -- "-$child"; asked=yes' USR1
    trap 'asked=yes; kill -KILL -- "-$child"' USR2
    [[ $3 != *.1 ]] || rm -f "$record.stopped"
    echo "$$ $3" >"$record"
    [[ ! -e $record.stopped ]] || return 130
    cd -- "$4" || return 2
    set -m # a process group for the command
    "${@:5}" </dev/null &
    child=$!
    set +m
    [[ -z $asked ]] || kill -TERM -- "-$child"
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a trap ends a `wait`
    wait "$child"
    code=$?
    await "-$child" "$GRACE" # its children may still save
    kill -KILL -- "-$child" 2>/dev/null
    [[ ! -e $record.stopped ]] || ((code <= 128)) || code=130
    return "$code"
  fi
}

on_host() { # HOST VERB [DIR COMMAND...]
  local text alive=(-oConnectTimeout=20 -oServerAliveInterval=15 -oServerAliveCountMax=4)
  printf -v text '%q ' host "$2" "$key-$1" "$token" "${@:3}"
  printf -v text 'bash -uc %q' "GRACE=$GRACE; $(declare -f host); $text"
  # shellcheck disable=SC2086 # several flags
  case $backend in
    local) bash -c "$text" ;;
    ssh) ssh -n -oBatchMode=yes "${alive[@]}" "${names[$1]}" "$text" ;;
    tpu) slice ssh "--worker=$1" --quiet "${alive[@]/#/--ssh-flag=}" $gcloud_flags "--command=$text" ;;
  esac </dev/null
}

client() { # HOST DIR COMMAND...: one host from its start to its exit code
  local code log=$logs/host-$1.log
  echo "[launch] host $1, start $token, $(date)" >>"$log"
  on_host "$1" run "${@:2}" ${coordinator:+--coordinator "$coordinator" --num-processes "$count" \
    --process-id "$1"} 2>&1 | if (($1)); then cat >>"$log"; else tee -a "$log"; fi
  code=${PIPESTATUS[0]}
  echo "[launch] exit code $code" >>"$log"
  exit "$code"
}

run() { # DIR COMMAND...: on all hosts; sets codes, and outcome: of a mistake before that of a death
  local host code running sent='' settled='' limit=0 again=0
  start=$((start + 1)) token=$launch.$start
  set -m # process groups of their own, so that Ctrl-C reaches this script alone
  for ((host = 0; host < count; host++)); do
    client "$host" "$@" &
    clients[host]=$!
  done
  set +m
  while true; do
    running=() outcome=0 codes=''
    for ((host = 0; host < count; host++)); do
      if kill -0 "${clients[host]}" 2>/dev/null; then running+=("$host") && continue; fi
      wait "${clients[host]}"
      code=$?
      codes+=" $host:$code"
      if ((code)) && { ((!outcome)) || is_mistake "$code"; }; then outcome=$code; fi
    done
    ((${#running[@]})) || return
    if [[ -z $sent && -n $stopping ]]; then
      sent=USR1 limit=999999999 # a save takes as long as it takes
    elif [[ -z $sent ]] && ((outcome)) && ((SECONDS >= ${settled:=$((SECONDS + SETTLE))})); then
      say "ended (host:code$codes): stopping the other hosts"
      sent=USR1 limit=$((SECONDS + GRACE))
    elif [[ $sent == USR1 ]] && { [[ $stopping == now ]] || ((SECONDS >= limit)); }; then
      say "killing what is left"
      sent=USR2 limit=$((SECONDS + 20)) again=0
    elif [[ $sent == USR2 ]] && ((SECONDS >= limit)); then
      say "hosts ${running[*]} do not answer: given up"
      for host in "${running[@]}"; do kill -KILL -- "-${clients[host]}"; done
    fi
    if [[ -n $sent ]] && ((SECONDS >= again)); then # again, as a host may only now have started
      again=$((SECONDS + 30))
      for host in "${running[@]}"; do on_host "$host" "$sent" >>"$logs/host-$host.log" 2>&1 & done
    fi
    sleep 0.2
  done
}

pause() { # SECONDS, or until asked to stop
  local end=$((SECONDS + $1))
  while [[ -z $stopping ]] && ((SECONDS < end)); do sleep 0.2; done
}

slice() { gcloud compute tpus tpu-vm "$1" "$tpu" "--zone=$zone" "${@:2}"; }

describe() { # sets state (MISSING: no such slice, UNKNOWN: gcloud cannot tell) and count
  local format='--format=value(state,networkEndpoints.len())'
  read -r state count < <(slice describe "$format" 2>"$logs/gcloud.log" || echo UNKNOWN 0)
  if grep -qe NOT_FOUND -e 'was not found' "$logs/gcloud.log"; then state=MISSING; fi
}

await_slice() { # true once it is READY
  local shown=''
  while [[ -z $stopping ]]; do
    describe
    case $state$recreate in
      READY*) return ;;
      MISSING) fail "$tpu" "there is no such slice in $zone" "create it, or add --recreate" ;;
      MISSING* | PREEMPTED?* | TERMINATED?*)
        say "slice $tpu is $state: creating it anew"
        [[ $state == MISSING ]] || slice delete --quiet || return
        # shellcheck disable=SC2086 # several flags
        slice create $recreate || return
        continue
        ;;
      UNKNOWN*) ((start)) || fail "$tpu" "gcloud cannot describe it" "$(<"$logs/gcloud.log")" 5 ;;
    esac
    [[ $state == "$shown" ]] || say "slice $tpu is $state: waiting until it is READY (a preempted \
one never is: delete and create it, or stop this and add --recreate)"
    shown=$state
    pause "$POLL"
  done
  return 1
}

tpu='' zone='' hosts='' dir='' setup='' logs='' max_restarts=5 port='' gcloud_flags='' recreate=''
command=() is_stop='' names=() clients=() missed=''
while (($#)); do
  case $1 in
    -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//p;}' "$0" && exit ;;
    --) command=("${@:2}") && break ;;
    --stop) is_stop=yes && shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --tpu | --zone | --hosts | --dir | --setup | --logs | --max-restarts | --port | \
      --gcloud-flags | --recreate)
      (($# > 1)) || fail "$1" "has no value" "see --help"
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift 2
      ;;
    *) fail "$1" "there is no such option" "see --help; -- comes before the command" ;;
  esac
done
case ${tpu:+tpu}$hosts in
  tpu) backend=tpu count=0 ;;
  local:[1-9]*) backend=local count=${hosts#local:} ;;
  ssh:[!,-]*) backend=ssh && IFS=, read -r -a names <<<"${hosts#ssh:}" && count=${#names[@]} ;;
  *) fail --hosts "got '$hosts'" "give either local:N, or ssh:HOST,HOST,..., or --tpu NAME" ;;
esac
for number in "$max_restarts" "${port:-0}" "$count"; do
  [[ $number =~ ^[0-9]+$ ]] || fail "$number" "is no whole number" "see --help"
done
[[ $backend != tpu || -n $zone ]] || fail --zone "is missing" "name it, such as europe-west4-b"
[[ $backend != tpu ]] || command -v gcloud >/dev/null ||
  fail gcloud "is not on the PATH" "install the Google Cloud CLI" 5
[[ -n $is_stop ]] || ((${#command[@]})) || fail COMMAND "is missing" "write it after --"
[[ -z $setup || -r $setup ]] || fail --setup "cannot read '$setup'" "name a shell script"
logs=${logs:-runs/launch/${tpu:-${hosts//[:,@]/-}}}
mkdir -p "$logs" || fail "$logs" "cannot be written" "choose another --logs" 5
# On a host: `key` tells this run's processes from those of others, `launch` from those before it.
key=${tpu:-$hosts}
[[ $backend != local ]] || key+=$(cd "$logs" && pwd)
key=$(cksum <<<"$key") key=${key%% *}
launch=$(date +%s)-$$ token='' start=0 restarts=0 delay=$BACKOFF stopping='' stop_code=''

if [[ -n $is_stop ]]; then
  [[ $backend != tpu ]] || describe
  ((count)) || fail "$tpu" "the slice is $state" "nothing runs there, or see $logs/gcloud.log" 5
  for ((host = 0; host < count; host++)); do
    on_host "$host" stop &
    clients[host]=$!
  done
  for ((host = 0; host < count; host++)); do
    wait "${clients[host]}" || missed+=" ${names[host]:-$host}"
  done
  [[ -z $missed ]] || fail "hosts$missed" "could not be asked, or the connection broke" "try again" 5
  exit 0
fi

on_signal() { # CODE
  [[ -z $stopping ]] && stopping=yes stop_code=$1 || stopping=now
  say "the command is asked to save and end, after compiling if it is; a second signal kills it"
}
trap 'on_signal 130' INT
trap 'on_signal 143' TERM HUP
trap '' PIPE # the logs go on when the reader of the output leaves
while true; do
  outcome=1 codes='' coordinator='' seconds=0
  if [[ $backend != tpu ]] || await_slice; then
    outcome=0
    [[ -z $setup ]] || { say "setting up $count hosts" && run . bash -c "$(<"$setup")"; }
    if ((outcome == 0)) && [[ -z $stopping ]]; then
      say "starting on $count hosts; logs in $logs"
      [[ $backend != local ]] || names=(127.0.0.1)
      [[ $backend == tpu ]] || coordinator=${names[0]##*@}:${port:-$((20000 + RANDOM % 12000))}
      seconds=$SECONDS
      run "${dir:-.}" "${command[@]}"
      seconds=$((SECONDS - seconds))
    fi
  fi
  if [[ -n $stopping ]]; then
    say "stopped (host:code$codes); the same command goes on from the last save"
    exit "$stop_code"
  fi
  ((seconds < HEALTHY)) || restarts=0 delay=$BACKOFF
  if ((outcome == 0 || restarts >= max_restarts)) || is_mistake "$outcome"; then
    say "exit code $outcome (host:code$codes) after $restarts restarts in a row; see $logs"
    exit "$outcome"
  fi
  restarts=$((restarts + 1))
  say "ended (host:code$codes); restart $restarts of $max_restarts in $delay s"
  pause "$delay"
  delay=$((delay * 2 < 300 ? delay * 2 : 300))
done
