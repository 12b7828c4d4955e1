"""Measures this project on one NVIDIA GPU, in stages that go on where they were ended.

    scripts/gpu_evidence.sh --camvid DIR     # all stages, about an hour; needs jax (CUDA) and torch
    scripts/gpu_evidence.sh --stage next     # the first stage that is not done, and no other
    scripts/gpu_evidence.sh --rehearse       # tiny sizes on a processor, a few minutes

Each stage takes at most `--minutes`. It writes NAME.json, one result at a time, and NAME.log, and
summary.md is written anew after each. A stage that ran out of time, or was killed, goes on in the
next call, and no result is measured twice: remove NAME.json to measure a stage anew. Nothing is
installed, no network is used.

Exit code: 0 all is done; 1 a stage failed (parity is not kept, or nothing could be measured); 2
wrong use, or no GPU; 3 a stage is not done yet: call again.
"""

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from evidence import summary
from evidence.record import DONE, FAILED, ROOT, SKIPPED, UNFINISHED, Record

STAGES = {
    "environment": "driver, versions, ceilings of matrix products and copies",
    "parity": "deeplab selftest; logits, loss and gradient against PyTorch's; ends all if not kept",
    "operators": "each operator: our form, plain lax, PyTorch; forward and with gradients",
    "steps": "training steps of three networks by deeplab bench, against PyTorch",
    "inference": "inference, also from file to mask, by deeplab bench",
    "flags": "XLA flags one at a time on the step of R-50-D16",
    "kernels": "where the step's time goes, by kind of kernel",
    "camvid": "three runs of CamVid; needs --camvid DIR",
}
_NEEDED = ("absl", "cv2", "flax", "jax", "jaxlib", "ml_collections", "numpy", "optax", "orbax",
           "PIL", "rich", "scipy", "torch")  # fmt: skip
_PROBE = """
import jax, torch
device = jax.devices()[0]
print(device.platform, torch.cuda.is_available(), device.device_kind, sep="|")
"""
_MORE = 3  # a worker's exit code: its time is over


def main(argv: Sequence[str] | None = None) -> int:
    """Runs stages; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_evidence.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--stage", metavar="NAME", help="this alone; next: the first not done")
    parser.add_argument("--list", action="store_true", help="show the stages and end")
    parser.add_argument("--output", metavar="DIR", help="default: runs/gpu_evidence")
    parser.add_argument("--minutes", metavar="N", type=float, default=10, help="of a stage (10)")
    parser.add_argument("--camvid", metavar="DIR", help="images/{train,val} and labels/{train,val}")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a processor")
    args = parser.parse_args(argv)
    kind = "rehearsal" if args.rehearse else "card"
    default = ROOT / "runs" / ("gpu_evidence" + "_rehearsal" * args.rehearse)
    output = Path(args.output).absolute() if args.output else default
    if args.stage not in (None, "next", *STAGES):
        _refuse(f"--stage={args.stage}", "there is no such stage", f"use next, {', '.join(STAGES)}")
    if not 0 < args.minutes < 1e6:
        _refuse(f"--minutes={args.minutes:g}", "no time to measure in", "give a number above 0")
    if args.camvid and not (Path(args.camvid) / "images" / "train").is_dir():
        what = "it holds no images/train"
        _refuse(f"--camvid={args.camvid}", what, "name the folder that does, or leave it out")
    try:
        records = {name: Record.read(output, name, args.rehearse) for name in STAGES}
    except ValueError as error:
        where, _, what = str(error).partition(": ")
        _refuse(where, f"it is no record ({what})", "remove it, and its stage is measured anew")
    if any(record.is_rehearsal != args.rehearse for record in records.values()):
        what = "it holds a rehearsal" if not args.rehearse else "it holds results of a card"
        _refuse(f"--output={output}", what, "give another folder")
    if args.list:
        for name, title in STAGES.items():
            print(f"{name:12} {records[name].status:11} {title}")
        return 0
    environment = _environment(args.rehearse, output)
    _check_machine(environment, args.rehearse)
    lock = _locked(output)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    camvid = str(Path(args.camvid).absolute()) if args.camvid else ""
    chosen = _chosen(args.stage, records, bool(camvid) or args.rehearse)
    for name in chosen:
        command = [name, str(output), kind]
        record = _run(command, camvid, 60 * args.minutes, environment, lock)
        records[name] = record
        summary.write(output, STAGES)
        said = f"{record.status}{': ' if record.reason else ''}{record.reason}"
        print(f"== {name}: {said} ({record.seconds:.0f} s)", flush=True)
        if name == "parity" and record.status == FAILED:
            fix = f"see {output / 'parity.log'}; --stage NAME runs one of the others all the same"
            print(f"error: parity: {record.reason} - {fix}", file=sys.stderr)
            break
    print(f"results: {output / 'summary.md'}")
    statuses = [records[name].status for name in (chosen if args.stage else STAGES)]
    return 1 if FAILED in statuses else _MORE if UNFINISHED in statuses else 0


def _chosen(asked: str | None, records: dict[str, Record], has_camvid: bool) -> list[str]:
    """Returns the stages of this call: one asked for, or those that are not done."""
    waiting = [
        name
        for name, record in records.items()
        if record.status in (UNFINISHED, FAILED) or (record.status == SKIPPED and has_camvid)
    ]
    if asked == "next":
        return waiting[:1]
    return [asked] if asked else waiting


def _run(
    command: list[str], camvid: str, seconds: float, environment: dict[str, str], lock: Any
) -> Record:
    """Runs a stage until it is done or its time is over, in new processes after crashes."""
    stage, output, kind = command[0], Path(command[1]), command[2]
    deadline = time.time() + seconds
    record = Record.read(output, stage, kind == "rehearsal")
    if record.status in (DONE, FAILED):  # what has no result is measured once more
        record.items = {k: v for k, v in record.items.items() if _is_good(v)}
        record.tries, record.running = {}, ""
    record.status, record.reason = UNFINISHED, ""
    if stage == "camvid" and not camvid and kind != "rehearsal":
        record.status, record.reason = SKIPPED, "no --camvid DIR"
    record.give_up("was killed or ran out of time twice")
    record.write(output)
    print(f"== {stage}: {STAGES[stage]}", flush=True)
    while record.status == UNFINISHED and time.time() < deadline:
        argv = [sys.executable, "-m", "evidence.worker", *command, str(deadline), camvid]
        code = _work(argv, output / f"{stage}.log", deadline + 5, environment, lock)
        record = Record.read(output, stage, kind == "rehearsal")
        if code == 0:
            _conclude(record)
        elif code in (_MORE, None):
            break
        elif not record.running:
            record.status, record.reason = FAILED, f"its process ended with {code}"
        else:  # it will crash again: the others go on
            record.give_up(f"the process ended with {code}; see {stage}.log", tries=1)
        record.write(output)
    record.write(output)
    return record


def _is_good(item: dict) -> bool:
    return "error" not in item and item.get("is_good", True)


def _conclude(record: Record) -> None:
    """Sets what a stage comes to, all its items tried.

    A result that is missing, as of a flag that XLA refuses, is told and ends nothing; one that
    breaks a limit is a failure, as is a stage without any result, or parity without all.
    """
    bad = [name for name, item in record.items.items() if not _is_good(item)]
    is_broken = any(not item.get("is_good", True) for item in record.items.values())
    is_empty = len(bad) == len(record.items)
    is_failed = is_broken or is_empty or (record.stage == "parity" and bool(bad))
    record.status, record.reason = FAILED if is_failed else DONE, _told(record, bad)


def _told(record: Record, bad: list[str]) -> str:
    lines = [record.items[name].get("error") or record.items[name].get("line", "") for name in bad]
    told = "; ".join(f"{name}: {line[:160]}" for name, line in zip(bad, lines, strict=True))
    return told if len(bad) < 4 else f"{len(bad)} are not good: {', '.join(bad)}"


def _work(
    argv: list[str], log: Path, ends: float, environment: dict[str, str], lock: Any
) -> int | None:
    """Runs one process, its output to the terminal and the log; None if its time was over."""
    with log.open("a") as file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=(lock.fileno(),),  # held as long as a process measures
        )
        try:
            return process.wait(max(ends - time.time(), 1))
        except subprocess.TimeoutExpired:
            return None
        finally:  # also on Ctrl-C and SIGTERM
            _kill(process)


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _environment(is_rehearsal: bool, output: Path) -> dict[str, str]:
    """Returns the environment of all processes."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch needs memory of the same card
        "DEEPLAB_COMPILE_CACHE": str(output / "compiled"),
        "JAX_COMPILATION_CACHE_DIR": str(output / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
    }
    if is_rehearsal:
        flags = environment.get("XLA_FLAGS", "")
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles sooner
            "OMP_NUM_THREADS": "1",  # PyTorch's threads wait for each other on a busy machine
            "OMP_WAIT_POLICY": "PASSIVE",
            # One processor, as one card is; thunks are in the trace.
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=1"
            " --xla_cpu_enable_xprof_traceme=true",
        }
    return environment


def _check_machine(environment: dict[str, str], is_rehearsal: bool) -> None:
    """Ends with one line where a package or the card is missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        _refuse(sys.executable, f"it lacks {', '.join(missing)}", "set PYTHON to one that has them")
    got = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True
    )
    if got.returncode:
        why = (got.stderr.strip().splitlines() or ["no reason given"])[-1]
        _refuse(sys.executable, why[:300], "repair its jax or torch, or set PYTHON to another")
    platform, has_cuda, kind = got.stdout.strip().splitlines()[-1].split("|")
    if is_rehearsal:
        return
    if platform != "gpu":
        fix = "give --rehearse for tiny sizes, or set PYTHON to one whose jax sees the GPU"
        _refuse(sys.executable, f"its jax has no GPU, but {kind}", fix)
    if has_cuda != "True":
        what = "its torch sees no GPU"
        _refuse(sys.executable, what, "set PYTHON to one that holds a CUDA build of torch")


def _locked(output: Path) -> Any:
    """Returns an open file whose lock tells that this folder, made if missing, is written to."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
    except OSError as error:
        what = f"it cannot be written to ({error.strerror})"
        _refuse(f"--output={output}", what, "give another folder")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fix = "wait for its end, or give another --output"
        _refuse(str(output), "another call measures there", fix)
    return lock


def _refuse(where: str, what: str, fix: str) -> NoReturn:
    print(f"error: {where}: {what} - {fix}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
