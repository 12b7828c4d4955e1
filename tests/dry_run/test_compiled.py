import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deeplab_jax.config import freeze, get_config
from deeplab_jax.distributed import mesh as mesh_lib
from deeplab_jax.dry_run import compiled, cycles, hardware
from deeplab_jax.models import ComputePolicy, ops
from deeplab_jax.models.layers import ConvBNReLU
from deeplab_jax.training.step import compiler_options, is_known

_COMPILER = pytest.mark.slow("needs a hardware compiler, and minutes of it")


@pytest.fixture(scope="module")
def layouts():
    """Whole, and split by rows over 4 devices."""
    mesh = jax.make_mesh((4,), ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def compile_sum(layouts, body, **options):
    whole, rows = layouts
    x = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
    return jax.jit(body, in_shardings=rows, out_shardings=whole, **options).lower(x).compile()


def test_memory_is_that_of_one_device(layouts):
    got = compiled.read_compiled(compile_sum(layouts, lambda x: x.sum(0)), seconds=1.5)
    assert (got.seconds, got.arguments, got.outputs, got.aliased) == (1.5, 2 * 4096, 4096, 0)
    assert got.needed == got.arguments + got.outputs + got.temporaries
    assert got.collectives == {"all-reduce": (1, 4096)}
    assert got.cycles is None
    assert got.unrecognised == ()


def test_what_is_donated_is_counted_once(layouts):
    _, rows = layouts
    x = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
    step = jax.jit(lambda x: x + 1, in_shardings=rows, out_shardings=rows, donate_argnums=0)
    got = compiled.read_compiled(step.lower(x).compile(), seconds=0)
    assert got.aliased == got.outputs == got.arguments == 2 * 4096
    assert got.needed == got.arguments + got.temporaries


def test_collectives_in_a_loop_count_every_turn(layouts):
    whole, _ = layouts

    def body(x):
        def add(total, k):
            part = jax.lax.with_sharding_constraint((x * total[None]).sum(0), whole)
            return total + part, None

        return jax.lax.scan(add, jnp.zeros(1024), jnp.arange(7))[0]

    collectives = compiled.read_compiled(compile_sum(layouts, body), seconds=0).collectives
    assert collectives == {"all-reduce": (7, 7 * 4096)}


# As the compilers print them, shortened.
TUPLE = """
ENTRY %main.1_spmd (param: f32[64]) -> f32[64] {
  %all-reduce.3 = (f32[64]{0:T(128)}, f32[2,32]{1,0:T(2,128)S(1)}, /*index=2*/bf16[8]{0}) all-reduce(%a, %b, /*index=2*/%c), channel_id=1, to_apply=%add
  %gte = f32[64]{0} get-tuple-element(%all-reduce.3), index=0
  ROOT %fusion = f32[64]{0} fusion(%gte), kind=kLoop, calls=%fused, metadata={op_name="all-reduce(x)"}
}
"""  # noqa: E501

STARTED = """
%fused (p: bf16[8]) -> bf16[32] {
  ROOT %all-gather.9 = bf16[32]{0} all-gather(%p), dimensions={0}
}

ENTRY %main (param: f32[64]) -> f32[64] {
  %ar = f32[64]{0} all-reduce-start(%param), to_apply=%add
  %ar.done = f32[64]{0} all-reduce-done(%ar)
  %cp = (bf16[2,8]{1,0:T(8,128)(2,1)}, bf16[2,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1}}
  %cp.done = bf16[2,8]{1,0} collective-permute-done(%cp)
  %ag = ((f32[4]{0}, f32[2]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%y, %z), dimensions={0}
  %ag.done = (f32[16]{0}, f32[8]{0}) all-gather-done(%ag)
  %inside = bf16[32]{0} fusion(%p), kind=kCustom, calls=%fused
  ROOT %r = f32[64]{0} copy(%ar.done)
}
"""  # noqa: E501

LOOP = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
}

%fused (p: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"90"}
}

ENTRY %main (param: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"},"estimated_cycles":"0"}
  ROOT %c = f32[8]{0} copy(%w), backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_a_collective_of_several_arrays_counts_once():
    assert compiled.read_collectives(TUPLE) == {"all-reduce": (1, 4 * 64 + 4 * 64 + 2 * 8)}


def test_what_is_started_and_awaited_counts_once_by_its_results():
    assert compiled.read_collectives(STARTED) == {
        "all-reduce": (1, 4 * 64),
        "collective-permute": (1, 2 * 16),
        "all-gather": (2, 4 * 24 + 2 * 32),
    }


def test_cycles_count_loops_by_their_turns_and_fusions_as_a_whole():
    assert compiled.read_cycles(LOOP) == 5 * 100 + 7
    assert compiled.read_cycles(TUPLE) is None


NAMED = """
ENTRY %main (param: f32[8]) -> f32[8] {
  %a = f32[8]{0} fusion(%p), metadata={op_name="jit(train_step)/jvp(DeepLabV3Plus)/backbone/layer1_0/conv1/norm/mul"}, backend_config={"estimated_cycles":"3"}
  %b = f32[8]{0} fusion(%a), metadata={op_name="jit(train_step)/transpose(jvp(DeepLabV3Plus))/aspp/branch1/depthwise/conv/add"}, backend_config={"estimated_cycles":"5"}
  %c = f32[8]{0} fusion(%a), metadata={op_name="jit(train_step)/jvp(DeepLabV3Plus)/aspp/merge/conv/conv_general_dilated"}, backend_config={"estimated_cycles":"7"}
  %d = f32[8]{0} fusion(%a), metadata={op_name="jit(train_step)/transpose(jvp(loss))/add"}, backend_config={"estimated_cycles":"11"}
  %e = f32[8]{0} fusion(%a), metadata={op_name="jit(train_step)/jvp(loss)/exp"}, backend_config={"estimated_cycles":"13"}
  %f = f32[8]{0} fusion(%a), metadata={op_name="jit(train_step)/add"}, backend_config={"estimated_cycles":"17"}
  ROOT %g = f32[8]{0} copy(%b), backend_config={"estimated_cycles":"19"}
}
"""  # noqa: E501


def test_cycles_are_told_by_kind_and_direction():
    kinds = compiled.read_cycles_by_kind(NAMED)
    assert kinds == {
        "norms": (3, 0),
        "depthwise": (0, 5),
        "convolutions and 1x1": (7, 0),
        "loss": (13, 11),
        "input, optimiser": (17, 0),
        "copies without a name": (19, 0),
    }
    assert compiled.read_cycles(NAMED) == sum(map(sum, kinds.values())) == 75
    lines = list(cycles.table({kind: (10**6 * a, 10**6 * b) for kind, (a, b) in kinds.items()}))
    assert lines[1].split() == ["loss", "13.00", "11.00", "32", "%"]
    assert lines[-1].split() == ["all", "59.00", "16.00", "100", "%"]


def test_roofline_is_arithmetic_and_memory_by_themselves():
    v5e = hardware.parse_hardware("v5e:2x4")
    assert cycles.roofline(v5e, "bfloat16", 197e9, 81.9e9) == (
        "197 GFLOP at 197 TFLOP/s 1.0 ms, 81.9 GB at 819 GB/s 100.0 ms"
    )
    assert cycles.roofline(hardware.parse_hardware("cpu:8"), "bfloat16", 1, 1) is None


def test_kernels_whose_gradient_cudnn_does_not_get_are_named():
    text = """
  %a = (f32[4]{0}, u8[0]{0}) custom-call(%x), window={size=3x3 pad=4_4x4_4 rhs_dilate=4x4}, custom_call_target="__cudnn$convForward", metadata={op_name="good"}
  %b = (f32[4]{0}, u8[0]{0}) custom-call(%x), window={size=64x64 stride=4x4}, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/layer4"}
  %c = f32[4]{0} convolution(%x), window={size=3x3}, metadata={op_name="left"}
  %d = f32[4]{0} reduce-window(%x), window={size=1x9x9x1}, metadata={op_name="pool"}
"""  # noqa: E501
    assert list(compiled.read_unrecognised(text)) == ["64x64 jit(step)/layer4", "3x3 left"]
    assert list(compiled.read_unrecognised(text.replace("__cudnn$conv", "other"))) == []


@pytest.fixture
def small():
    config = get_config("folder", 18, 16)
    config.data.crop_size = (64, 64)
    config.model.width, config.model.head_channels, config.train.batch_size = 8, 16, 4
    return freeze(config)


@pytest.mark.parity("compiles the step; figures of small programs are in the first tier")
def test_the_step_that_is_compiled_is_the_runs(small, compile_quickly):
    devices = jax.devices()
    got, _ = compiled.compile_step(compiled.lower_step(small, devices))
    state, *batch = compiled.abstract_arguments(small)
    split = sum(leaf.size * leaf.dtype.itemsize for leaf in batch) // len(devices)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert got.arguments == split + whole
    assert got.aliased == whole  # the state is donated
    assert got.flops > 0
    assert set(got.collectives) == {"all-reduce"}


@pytest.mark.parametrize(
    ("convolve", "count"), [(ops.conv, 1), (ops.conv3x3_by_products, 0)], ids=["plain", "products"]
)
def test_cudnn_gets_dilated_kernels_gradients_only_as_products(convolve, count, absent_devices):
    devices, options = absent_devices("h200")

    def loss(kernel, x):
        stride = (1,) if convolve is ops.conv else ()
        y = convolve(x, kernel, *stride, 4, jax.lax.Precision.DEFAULT)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((2, 32, 32, 128), jnp.bfloat16)
    layout = jax.sharding.SingleDeviceSharding(devices[0])
    lowered = jax.jit(jax.grad(loss, (0, 1)), in_shardings=layout).lower(kernel, x)
    got = compiled.read_compiled(lowered.compile(compiler_options=options), seconds=0)
    assert len(got.unrecognised) == count, got.unrecognised


@pytest.mark.parametrize(
    ("size", "fused"), [(3, '"activation_mode":"kRelu"'), (1, '"epilogue":"BIAS_RELU"')]
)
def test_gpus_kernels_of_inference_add_the_bias_and_apply_relu(size, fused, absent_devices):
    devices, options = absent_devices("h200")
    policy = ComputePolicy(jnp.bfloat16, "gpu", is_folded=True)
    module = ConvBNReLU(256, policy, size)
    x = jax.ShapeDtypeStruct((2, 32, 32, 256), jnp.bfloat16)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, False)
    layout = jax.sharding.SingleDeviceSharding(devices[0])
    apply = jax.jit(lambda variables, x: module.apply(variables, x, False), in_shardings=layout)
    text = apply.lower(variables, x).compile(compiler_options=options).as_text()
    assert fused in text
    assert not re.search(r"f32\[2,32,32,256\]\S* (fusion|custom-call|convert)\(", text)


@_COMPILER
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_cudnn_gets_every_kernels_gradient_of_the_network(dtype, compile_run):
    config = get_config("voc", 50, 8)
    config.model.dtype = dtype
    assert compile_run(freeze(config), "h200").unrecognised == ()


@_COMPILER
def test_gpus_sum_as_often_as_a_tpu_slice(compile_run):
    config = get_config("ade20k", 50, 16)
    config.model.dtype = "bfloat16"
    got = compile_run(freeze(config), "h200:8")
    assert set(got.collectives) == {"all-reduce"}
    assert got.collectives["all-reduce"][0] <= 125


@_COMPILER
@pytest.mark.parametrize(
    ("name", "dataset", "spatial", "kinds"),
    [
        ("v5e:2x4", "ade20k", 1, {"all-reduce"}),
        ("v5e:4x4", "cityscapes", 2, {"all-reduce", "collective-permute"}),
        ("v5e:4x8", "cityscapes", 4, {"all-reduce", "collective-permute"}),
    ],
)
def test_what_a_tpu_slice_communicates(name, dataset, spatial, kinds, compile_run):
    config = get_config(dataset, 50, 16)
    config.model.dtype, config.mesh.spatial = "bfloat16", spatial
    got = compile_run(freeze(config), name)
    assert set(got.collectives) == kinds
    assert got.collectives["all-reduce"][0] <= 125
    if spatial == 4:  # what a prototype of this network needed
        assert got.collectives["collective-permute"][0] <= 133
        assert got.temporaries <= 638 * 2**20
        assert got.cycles <= 26e6


def test_tpus_compiler_knows_the_checker_of_the_hardware(small, absent_devices):
    devices, _ = absent_devices("v5e:2x2")
    sizes = []
    for is_checked in (False, True):
        mesh = dataclasses.replace(small.mesh, check_hardware=is_checked)
        run = dataclasses.replace(small, mesh=mesh)
        options = compiler_options(run, mesh_lib.mesh_of(run, devices))
        assert ("xla_tpu_enable_sdc_checker" in options) == is_checked
        assert "xla_tpu_run_space_to_batch" in options
        layout = jax.sharding.SingleDeviceSharding(devices[0])
        x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
        step = jax.jit(lambda x: x @ x, in_shardings=layout, compiler_options=options)
        figures = step.lower(x).compile().memory_analysis()
        sizes.append(figures.generated_code_size_in_bytes)
    assert sizes[1] > sizes[0]
    assert not is_known({"xla_tpu_no_such_option": False}, mesh_lib.mesh_of(small, devices))
