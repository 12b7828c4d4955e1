import importlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from deeplab_jax.distributed import compiler_faults
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.models import ops
from deeplab_jax.selftest import checks, network
from deeplab_jax.selftest.run import run

SPLIT = "--config.mesh.spatial=2"  # of the four devices that tests see, two share a picture
_COMPILES = pytest.mark.process("compiles the training step, once a fault")


@pytest.mark.parity("three steps of PyTorch in float64")
def test_numbers_are_pytorchs(torch_reference):
    written = importlib.import_module("write_selftest")
    expected = json.loads(written.PATH.read_text())
    got = written.pytorch(torch_reference)
    assert got.keys() == expected.keys()
    assert (got["checksum"], network.checksum()) == (expected["checksum"],) * 2
    for name in ("loss_main", "loss_aux", "grad_norm", "logits", "change"):
        np.testing.assert_allclose(got[name], expected[name], 1e-9, err_msg=name)
    for name in ("gradient", "statistics"):
        assert got[name].keys() == expected[name].keys()
        for path, values in expected[name].items():
            assert checks.error(values, got[name][path]) < 1e-9, path


def test_sketch_shows_every_difference():
    rng = np.random.default_rng(0)
    array = rng.standard_normal((30, 40))
    for change in (1e-3 * rng.standard_normal((30, 40)), 1e-2 * (np.arange(1200) == 777)):
        other = array + change.reshape(30, 40)
        found = checks.error(network.sketch("a", array), network.sketch("a", other))
        assert found == pytest.approx(np.linalg.norm(change) / np.linalg.norm(array), rel=0.6)
    array[3, 3] = np.nan
    assert checks.error(network.sketch("a", other), network.sketch("a", array)) == np.inf


@_COMPILES
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [SPLIT],
        pytest.param(
            ["--config.model.dtype=bfloat16"],
            marks=pytest.mark.slow("XLA compiles bfloat16 slowly on a CPU"),
        ),
    ],
)
def test_this_machine_passes(compile_quickly, capsys, overrides):
    _, failed = run(overrides)
    assert failed == []
    out = capsys.readouterr().out
    assert out.count("\nok   ") == 12 - ("4 x" not in out)
    assert "FAIL" not in out
    assert ("(data 2, spatial 2)" in out) == (SPLIT in overrides)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_fused_operations_have_the_forms_of_a_platform(platform):
    assert checks.fused_operations(platform).is_good


def gradient_of_dilated_kernel(monkeypatch):
    """A gradient form that forgets two percent, in one layer."""
    conv3x3 = ops.conv3x3

    @jax.custom_vjp
    def same(kernel):
        return kernel

    same.defvjp(lambda kernel: (kernel, None), lambda _, g: (0.98 * g,))

    def wrong(x, kernel, stride, dilation, *rest):
        return conv3x3(x, same(kernel) if dilation == 4 else kernel, stride, dilation, *rest)

    monkeypatch.setattr(ops, "conv3x3", wrong)
    return "gradient", "gradient of each layer"


def biased_norm(monkeypatch):
    """A norm that divides the variance by n - 1, as running ones are."""
    normalize = ops.normalize

    def wrong(x, *rest):
        y, mean, var = normalize(x, *rest)
        count = x.size // x.shape[-1]
        return y, mean, var * (count - 1) / count

    monkeypatch.setattr(ops, "normalize", wrong)
    return ("statistics",)


def norm_of_each_device(monkeypatch):
    """A norm whose sums do not cross the mesh."""
    normalize = ops.normalize
    mesh = mesh_lib.make_mesh(network.BATCH)

    def wrong(*arguments):
        *arrays, platform = arguments

        def plain(*arrays):
            return normalize(*arrays, platform)

        if arrays[0].shape[0] % network.BATCH:  # not the step's
            return plain(*arrays)
        split = P(mesh_lib.DATA_AXIS)
        each = jax.shard_map(plain, mesh=mesh, in_specs=(split, P(), P(), P()),
                             out_specs=(split, P(), P()), check_vma=False)  # fmt: skip
        return each(*arrays)

    monkeypatch.setattr(ops, "normalize", wrong)
    return "gradient", "statistics", "loss_main"


@_COMPILES
@pytest.mark.parametrize("inject", [gradient_of_dilated_kernel, biased_norm, norm_of_each_device])
def test_wrong_form_is_named_in_one_line(monkeypatch, call, compile_quickly, inject):
    names = inject(monkeypatch)
    code, out, err = call("selftest")
    assert (code, err.count("\n")) == (6, 1)
    failed = [line for line in out.splitlines() if line.startswith("FAIL ")]
    assert [line for name in names for line in failed if line.startswith(f"FAIL {name}: ")]
    assert err.startswith(
        f"error: deeplab selftest on 4 x cpu (data 4, spatial 1), float32: {names[0]}: "
    )
    assert "expected norm" in err
    assert ", got " in err
    assert " - do not train with " in err


def test_steps_that_differ_are_named():
    one = {"params": {"a": np.float32(1), "b": np.float32([2, 3])}}
    other = {"params": {"a": np.float32(1), "b": np.float32([2, 3.0000002])}}
    assert checks.determinism(one, one).is_good
    result = checks.determinism(one, other)
    assert not result.is_good
    assert result.text == "the same step twice differs in 1 arrays, such as params/b"


def test_devices_that_differ_are_named():
    devices = jax.devices()[:3]
    mesh = mesh_lib.make_mesh(3, devices)
    values = [np.float32([1, 2]), np.float32([1, 2]), np.float32([1, 2.5])]
    parts = [jax.device_put(value, device) for value, device in zip(values, devices, strict=True)]
    whole = mesh_lib.replicated(mesh)
    leaf = jax.make_array_from_single_device_arrays((2,), whole, parts)
    result = checks.devices_agree(mesh, {"params": leaf})
    assert not result.is_good
    assert result.text == f"expected one state on all, got another on {devices[2]} (params)"


@pytest.mark.parametrize(
    ("shown", "holders", "is_good", "text"),
    [
        ((1.0, 1.0), ["the network"], True, "a sum of things is right"),
        ((1.0, 0.9), [], True, "note: a sum of things: expected 1, got 0.9; no program of deeplab"),
        ((1.0, 0.9), ["the network"], False, "expected 1, got 0.9; the network contains it"),
    ],
)
def test_known_fault_counts_where_our_programs_contain_it(
    monkeypatch, shown, holders, is_good, text
):
    fault = compiler_faults.Fault(
        "a sum of things", "x/y#1", (), "cpu", "mend it", lambda: shown, lambda text: text == "bad"
    )
    monkeypatch.setattr(compiler_faults, "FAULTS", (fault,))
    texts = {name: "bad" if name in holders else "good" for name in ("the step", "the network")}
    programs = SimpleNamespace(mesh=mesh_lib.make_mesh(1, jax.devices()[:1]), texts=lambda: texts)
    (result,) = checks.known_faults(programs)
    assert (result.name, result.is_good) == ("compiler, x/y#1", is_good)
    assert text in result.text
    assert result.is_good or result.fix == "mend it"
