"""XLA's flags, one at a time, on the training step of R-50-D16 in bfloat16.

None is on by default. Each is given to the compiler as an option of this one program, which is the
same as the word `--NAME=VALUE` in `XLA_FLAGS`, so that the step with it and the step without
alternate in one process.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from evidence.networks import ade20k, train_step
from evidence.record import Box, Item, Result
from evidence.timing import Way, alternate


class Flag(NamedTuple):
    """A flag worth trying.

    Attributes:
      name: as in XLA_FLAGS, without dashes.
      value: other than XLA's own.
      why: what it changes.
      effect: what to expect of this network on one card.
    """

    name: str
    value: Any
    why: str
    effect: str


FLAGS = (
    Flag("xla_gpu_enable_latency_hiding_scheduler", True,
         "schedules copies and collectives beside other work",
         "none on one card; gradients' sums overlap on several"),
    Flag("xla_gpu_all_reduce_combine_threshold_bytes", 2**28,
         "sums gradients in few large collectives",
         "none on one card; on several it is on already"),
    Flag("xla_gpu_enable_command_buffer", "",
         "launches kernels one by one instead of as CUDA graphs",
         "slower where launches decide (batch 1); else none"),
    Flag("xla_gpu_graph_min_graph_size", 1,
         "makes CUDA graphs of short runs of kernels too",
         "a little where launches decide"),
    Flag("xla_gpu_enable_triton_gemm", False,
         "takes cuBLAS for all products, none of Triton's",
         "shorter compilation; the 1x1 convolutions faster or slower by a few percent"),
    Flag("xla_gpu_exhaustive_tiling_search", True,
         "tries every tiling of Triton's products",
         "long compilation; a few percent of the 1x1 convolutions"),
    Flag("xla_gpu_cudnn_gemm_fusion_level", 2,
         "lets cuDNN compute products with their neighbours fused",
         "bias, norm and activation join the 1x1 convolutions; a few percent"),
    Flag("xla_gpu_experimental_enable_conv_fusion", True,
         "writes convolutions as fusions, so that what follows can join them",
         "fewer passes over memory after 3x3 convolutions; experimental"),
    Flag("xla_gpu_use_runtime_fusion", True,
         "lets cuDNN compile fused kernels at run time",
         "convolution with bias and activation in one kernel"),
    Flag("xla_gpu_force_conv_nhwc", True,
         "keeps cuDNN's convolutions in channels-last layout",
         "no transposes of layout; none if XLA chose it already"),
    Flag("xla_gpu_force_conv_nchw", True,
         "keeps cuDNN's convolutions in channels-first layout",
         "slower: shows what channels-last gains"),
    Flag("xla_gpu_autotune_level", 1,
         "times fewer candidates and checks none of their results",
         "shorter compilation, the same step or slower"),
    Flag("xla_gpu_autotune_level", 0,
         "times no candidates",
         "shortest compilation; shows what timing them gains"),
    Flag("xla_gpu_fusion_autotune_top_k_configs", 5,
         "times more candidates of fused element-wise kernels",
         "longer compilation; norms and activations a little faster"),
    Flag("xla_gpu_experimental_all_fusions_with_triton", True,
         "tries Triton for every fusion",
         "long compilation; norms and the loss faster or slower"),
    Flag("xla_gpu_native_emitter_tune_unroll_factor_for_loops", True,
         "times unrollings of element-wise kernels",
         "longer compilation; a few percent of the passes over memory"),
    Flag("xla_gpu_unsupported_enable_triton_multi_output_fusion", True,
         "lets one kernel of Triton's write several results",
         "fewer reads where a norm's sums and its result come from one array"),
    Flag("xla_gpu_dot_merger_threshold_mb", 256,
         "joins larger products that share an operand",
         "ASPP's 1x1 convolutions of one input as one product"),
    Flag("xla_gpu_enable_fast_min_max", True,
         "maximum without the rules for NaN",
         "ReLU and max pooling a little faster; a NaN may go unnoticed"),
    Flag("xla_allow_excess_precision", False,
         "rounds to bfloat16 after each operation, as written",
         "slower: shows what fused float32 intermediates gain"),
    Flag("xla_gpu_deterministic_ops", True,
         "takes only kernels that give the same bits in every run",
         "the cost of bit-equal runs"),
)  # fmt: skip


def label(flag: Flag) -> str:
    """Returns the word of XLA_FLAGS."""
    value = str(flag.value).lower() if isinstance(flag.value, bool) else flag.value
    return f"--{flag.name}={value}"


def items(box: Box) -> list[Item]:
    """Returns the step without a flag, and with each; a rehearsal tries one."""
    base: list[Step] = []

    def without() -> Step:
        if not base:  # a process that goes on finds it in the compile cache
            base.append(_step(box, None))
        return base[0]

    wanted = box.pick(FLAGS, FLAGS[:1])
    plain = Item("no flag", lambda: _alone(box, without()), 120)
    return [plain, *(Item(label(f), partial(_try, box, f, without), 75) for f in wanted)]


class Step(NamedTuple):
    """A compiled step: how it is called, and the loss of its first call."""

    way: Way
    loss: float
    compile_seconds: float


def _step(box: Box, options: dict[str, Any] | None) -> Step:
    began = time.perf_counter()
    way, _ = train_step(ade20k(box, box.pick("bfloat16", "float32")), options)
    seconds = time.perf_counter() - began
    _, metrics = way.wait(way.call())
    return Step(way, float(metrics["loss"]), round(seconds, 1))


def _alone(box: Box, step: Step) -> Result:
    times = alternate(box, {"step": step.way}, rounds=5, seconds=10)
    told = f"{1e3 * times['step']['median']:.4g} ms"
    return {"times": times, "compile_seconds": step.compile_seconds, "line": told}


def _try(box: Box, flag: Flag, without: Callable[[], Step]) -> Result:
    base, changed = without(), _step(box, {flag.name: flag.value})
    ways = {"without": base.way, "with": changed.way}
    times = alternate(box, ways, rounds=9, seconds=15)
    ratio = times["with"]["median"] / times["without"]["median"]
    return {
        "times": times,
        "ratio": ratio,
        "compile_seconds": changed.compile_seconds,
        "loss_difference": abs(changed.loss - base.loss) / abs(base.loss),
        "why": flag.why,
        "effect": flag.effect,
        "line": f"{ratio:.3f} of the step without",
    }
