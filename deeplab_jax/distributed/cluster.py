"""Start and end of a run of several processes, named by flags or found in the environment.

Importing this loads no JAX; starting a run of several processes does. Collectives between the
processes of a run are in `distributed.hosts`.
"""

import argparse
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.utils import machine
from deeplab_jax.utils.progress import discard

_CONNECT_SECONDS = 300  # wait for all processes to come; a slice's hosts do not boot at once
_QUIET_SECONDS = 10  # of this wait, before a line about it is printed
HEARTBEAT_SECONDS = 60  # without a heartbeat until a process counts as dead
_END_SECONDS = 300  # wait for the others to end after success: the first writes reports
_LEAVE_SECONDS = 10  # wait after a failure, which the others may not know of

_FLAGS = ("--coordinator", "--num-processes", "--process-id")
_is_initialized = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run on several hosts."""
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of process 0, for a run of several processes"
    )
    parser.add_argument(
        "--num-processes",
        metavar="N",
        type=int,
        help="how many run this command; 1 alone: this one does, whatever the cluster says",
    )
    parser.add_argument(
        "--process-id", metavar="I", type=int, help="which of them this is, from 0; all three or"
        " none: TPU slices, Slurm and Open MPI need no flags"
    )  # fmt: skip


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: float = _CONNECT_SECONDS,
) -> None:
    """Joins the other processes of the run, before anything uses a device.

    Without arguments the environment is searched for a cluster: a TPU slice, several tasks of
    Slurm or Open MPI. Without a cluster this process works alone.

    Args:
      coordinator: "HOST:PORT" where process 0 listens.
      num_processes: processes of the run; 1 as the only argument: ignore the environment.
      process_id: number of this process, from 0.
      seconds: to wait for the others.

    Raises:
      ConfigError: the arguments are incomplete or wrong, or the environment is half of a cluster.
      ResourceError: process 0 cannot listen there.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, 1, None):
        return
    if any(value is not None for value in given):
        arguments = _checked(coordinator, num_processes, process_id)
        if num_processes == 1:
            return
        # Detection would also choose devices; here a process uses all that it sees.
        arguments["cluster_detection_method"] = "deactivate"
    elif (found := _find_cluster(os.environ)) is None:
        return
    else:
        arguments = found
    _initialize(arguments, seconds)


def is_alone(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Tells whether this process works alone, for sure and without loading JAX.

    Arguments as of `initialize`. False on a machine with TPU chips, which may belong to a slice.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, 1, None):
        return True
    if given != (None, None, None) or _slurm(os.environ) or _open_mpi(os.environ):
        return False
    names = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES")
    return not machine.tpu_chips() and not any(name in os.environ for name in names)


def is_initialized() -> bool:
    """Tells whether this process has joined others."""
    return _is_initialized


def shutdown(code: int) -> None:
    """Leaves the other processes before this one exits with `code`.

    Waits up to 300 s for their end, and 10 s after a failure, of which they may not know.
    """
    if not _is_initialized:
        return
    import jax

    end = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    end.start()
    end.join(_LEAVE_SECONDS if code else _END_SECONDS)
    if end.is_alive():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code or ResourceError.exit_code)  # JAX would wait for the others at exit


def _checked(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any]:
    """Returns the arguments of `jax.distributed.initialize`."""
    given = dict(zip(_FLAGS, (coordinator, num_processes, process_id), strict=True))
    missing = [flag for flag, value in given.items() if value is None]
    if coordinator is None or num_processes is None or process_id is None:
        fix = f"add {' and '.join(missing)}, or leave all three out"
        raise ConfigError(", ".join(f for f in _FLAGS if f not in missing), "is not enough", fix)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        fix = "give the host and a free port of process 0, such as 10.0.0.2:8476"
        raise ConfigError("--coordinator", f"{coordinator} is not HOST:PORT", fix)
    if num_processes < 1:
        raise ConfigError("--num-processes", f"must be 1 or more, got {num_processes}", "count")
    if not 0 <= process_id < num_processes:
        what = f"must be from 0 to {num_processes - 1} (--num-processes {num_processes}), got"
        raise ConfigError("--process-id", f"{what} {process_id}", "number the processes from 0")
    if process_id == 0 and num_processes > 1:
        _check_port(int(port))
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }


def _check_port(port: int) -> None:
    """Refuses a port in use, with which JAX would end the process."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            what = f"port {port} cannot be used here ({error.strerror})"
            raise ResourceError("--coordinator", what, "choose another, for all hosts") from None


def _find_cluster(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`; None without several processes."""
    for find in (_slurm, _open_mpi, _tpu):
        if (found := find(environ)) is not None:
            return found
    return None


def _slurm(environ: Mapping[str, str]) -> dict[str, Any] | None:
    # The variables that JAX reads; only `srun` sets those of a step.
    names = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
    if any(f"SLURM_{name}" not in environ for name in names):
        return None
    tasks = environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"])
    if int(tasks) < 2:
        return None
    arguments: dict[str, Any] = {"cluster_detection_method": "slurm"}
    if environ.get("SLURM_STEP_NUM_NODES") == tasks:
        # A task alone on its node uses all devices there; JAX would give it the first.
        arguments["local_device_ids"] = []
    return arguments


def _open_mpi(environ: Mapping[str, str]) -> dict[str, Any] | None:
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) < 2:
        return None
    if "OMPI_MCA_orte_hnp_uri" not in environ:  # Open MPI 5
        what = f"Open MPI started {environ['OMPI_COMM_WORLD_SIZE']} processes and names no address"
        fix = (
            "give --coordinator HOST:PORT --num-processes $OMPI_COMM_WORLD_SIZE"
            " --process-id $OMPI_COMM_WORLD_RANK"
        )
        raise ConfigError("--coordinator", what, fix)
    return {"cluster_detection_method": "ompi"}


def _tpu(environ: Mapping[str, str]) -> dict[str, Any] | None:
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return None
    workers = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", ""))
    if "," in workers or int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return {}
    # Importing JAX sets TPU_ML_PLATFORM where there are TPU chips, TPU_SKIP_MDS_QUERY where there
    # are none. With chips, JAX asks the metadata server for the number of hosts.
    import jax  # noqa: F401

    is_tpu_machine = environ.get("TPU_ML_PLATFORM") == "JAX"
    return {} if is_tpu_machine and "TPU_SKIP_MDS_QUERY" not in environ else None


def _initialize(arguments: dict[str, Any], seconds: float) -> None:
    global _is_initialized
    import jax

    # This service would take SIGTERM, which the commands handle.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with _guarded(arguments, seconds):
        try:
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=round(seconds) + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_END_SECONDS,
            )
        except (ValueError, RuntimeError, OSError) as error:
            if not arguments and "coordinator_address should be defined" in str(error):
                return  # a TPU machine that belongs to no slice
            what = f"the processes cannot meet ({' '.join(str(error).split())[:200]})"
            raise ResourceError("hosts", what, "give --coordinator, the same on all") from error
    _is_initialized = jax.process_count() > 1
    if _is_initialized:
        from deeplab_jax.distributed import hosts

        if not hosts.is_primary():
            discard(sys.stdout)  # the first prints for all
        _check_devices()
        hosts.all_gather(None)  # connects Gloo now: it waits 30 s for the others, no longer


def _check_devices() -> None:
    """Refuses hosts with different numbers of devices, as after a device has failed."""
    import jax

    counts = Counter(dict.fromkeys(range(jax.process_count()), 0))
    counts.update(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{number} on process {host}" for host, number in sorted(counts.items()))
        fix = "see why some are missing, or give each process as many"
        raise ConfigError("hosts", f"have different numbers of devices: {told}", fix)


@contextmanager
def _guarded(arguments: Mapping[str, Any], seconds: float) -> Iterator[None]:
    """Ends the process with one line if the block takes too long; JAX prints a stack trace."""
    done = threading.Event()

    def watch() -> None:
        quiet = min(seconds, _QUIET_SECONDS)
        if not done.wait(quiet) and seconds > quiet:
            text = f"waiting up to {seconds:.0f} s for the other processes"
            print(text, file=sys.stderr, flush=True)
        if not done.wait(seconds - quiet):
            error = _not_met(arguments, seconds)
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _not_met(arguments: Mapping[str, Any], seconds: float) -> ResourceError:
    address = arguments.get("coordinator_address")
    if not address or arguments.get("process_id") == 0:
        what = f"not all processes came within {seconds:.0f} s"
        return ResourceError("hosts", what, "start the same command on every host, each once")
    problem = _unreachable(address)
    what = f"{address} {problem}; waited {seconds:.0f} s"
    return ResourceError("--coordinator", what, "check the address, and that process 0 runs")


def _unreachable(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except socket.gaierror:
        return "has no known host"
    except OSError as error:
        return f"does not answer ({error.strerror or error})"
    return "answers, but not all processes came"
