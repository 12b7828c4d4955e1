"""How a process finds the others of its run."""

import fnmatch
import glob
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from deeplab_jax.distributed import cluster
from deeplab_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("10.0.0.2:80", None, None), "add --num-processes and --process-id"),
        ((None, 2, 0), "add --coordinator"),
        (("10.0.0.2", 2, 1), "10.0.0.2 is not HOST:PORT"),
        (("10.0.0.2:80", 2, 2), "must be from 0 to 1"),
        (("10.0.0.2:80", 0, 0), "must be 1 or more"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        cluster.initialize(*arguments)


def test_coordinator_that_does_not_answer_is_one_line():
    code = "from deeplab_jax.distributed import cluster\n"
    code += "cluster.initialize('127.0.0.1:9', 2, 1, seconds=1)"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert got.returncode == 5
    assert got.stderr.count("\n") == 1
    assert got.stderr.startswith("error: --coordinator: 127.0.0.1:9 does not answer (")


SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({**SRUN}, {"cluster_detection_method": "slurm"}),
        (
            {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"},
            {"cluster_detection_method": "slurm", "local_device_ids": []},
        ),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**SRUN, "SLURM_NTASKS": "1"}, None),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"},
            {"cluster_detection_method": "ompi"},
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_SKIP_MDS_QUERY": "1"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"MEGASCALE_NUM_SLICES": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
        ({"TPU_ML_PLATFORM": "JAX"}, {}),
    ],
)
def test_cluster_is_found_in_the_environment(environ, expected):
    assert cluster._find_cluster(environ) == expected


@pytest.mark.parametrize(
    ("flags", "environ", "files", "expected"),
    [
        ((), {}, (), True),
        ((None, 1, None), SRUN, ("/dev/accel0",), True),  # whatever the cluster says
        (("10.0.0.2:80", 2, 0), {}, (), False),
        (("10.0.0.2:80", 1, 0), {}, (), False),
        ((), SRUN, (), False),
        ((), {**SRUN, "SLURM_NTASKS": "1"}, (), True),
        (
            (),
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"},
            (),
            False,
        ),
        ((), {"OMPI_COMM_WORLD_SIZE": "1"}, (), True),
        ((), {"TPU_WORKER_HOSTNAMES": "localhost"}, (), False),
        ((), {"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, (), False),
        ((), {"MEGASCALE_NUM_SLICES": "2"}, (), False),
        ((), {}, ("/dev/accel0",), False),
        ((), {}, ("/dev/vfio/0",), False),
    ],
)
def test_process_is_alone_only_where_that_is_sure(monkeypatch, flags, environ, files, expected):
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(files, pattern))
    assert cluster.is_alone(*flags) is expected


def test_hosts_with_other_numbers_of_devices_are_refused(monkeypatch):
    devices = [SimpleNamespace(process_index=host) for host in (0, 0, 2)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ConfigError, match="2 on process 0, 0 on process 1, 1 on process 2"):
        cluster._check_devices()
