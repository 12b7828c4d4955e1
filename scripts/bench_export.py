"""Times our ONNX beside PyTorch's exporter's of the same network, and our own engine.

    python scripts/bench_export.py                      # three recipes, 360x480
    python scripts/bench_export.py --config voc_r50_os8 --size 512x512 --rounds 6

Weights are random, the same for all three; logits are compared first. Ours takes bytes and
normalises them, PyTorch's takes what is normalised already. Sides take turns in every order, in one
process with as many threads each; of two runs in a turn the second counts. Prints medians and
ratios.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence

RECIPES = ("camvid_r18_os16", "camvid_r50_os16", "voc_r50_os8")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each recipe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--config", help=f"recipe; default: {', '.join(RECIPES)}")
    parser.add_argument("--size", default="360x480", help="height and width; default: 360x480")
    parser.add_argument("--rounds", type=int, default=12, help="default: 12")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    args = parser.parse_args(argv)
    os.environ["NPROC"] = str(args.threads)  # of XLA, before it loads
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    height, width = map(int, args.size.split("x"))
    for name in [args.config] if args.config else RECIPES:
        print(compare(name, (height, width), args.rounds, args.threads), flush=True)


def compare(name: str, size: tuple[int, int], rounds: int, threads: int) -> str:
    """Returns the medians of a recipe's network in words."""
    import jax
    import numpy as np
    import onnxruntime

    from convert.keymap import to_tensors
    from deeplab_jax.benchmark import pytorch
    from deeplab_jax.config.recipe import load_recipe
    from deeplab_jax.export import onnx_graph
    from deeplab_jax.inference.engine import Engine, Item
    from deeplab_jax.inference.protocol import TABLE
    from deeplab_jax.models import build_model, fold_batch_norm, init_variables
    from deeplab_jax.models.preprocess import normalize

    config = load_recipe(name, ["--config.eval.resize_base=", "--config.init.backbone=none"])
    model = build_model(config.model)
    variables = jax.device_get(jax.jit(lambda: init_variables(model, 0))())
    net = pytorch.network(config.model)
    pytorch.load(net, to_tensors(variables, {}, config.model.depth))
    params = fold_batch_norm(variables)["params"]
    own = onnx_graph.build(params, config, "logits", {}).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    ours, theirs = (
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for content in (own, pytorch.to_onnx(net, onnx_graph.OPSET))
    )
    engine = Engine(model, TABLE).load(variables)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    normalized = np.ascontiguousarray(normalize(image)[None].transpose(0, 3, 1, 2))
    sides: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: ours.run(None, {"image": image[None]})[0][0],
        "pytorch": lambda: theirs.run(None, {"image": normalized})[0][0].transpose(1, 2, 0),
        "engine": lambda: engine.logits(Item(None, image, size)),
    }
    got = {side: run() for side, run in sides.items()}
    largest = np.abs(got["engine"]).max()
    apart = max(float(np.abs(x - got["engine"]).max() / largest) for x in got.values())
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for order in itertools.islice(itertools.cycle(itertools.permutations(sides)), rounds):
        for side in order:
            sides[side]()  # threads of the side before wait busily for some time
            began = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - began)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    return (
        f"{name}, {size[0]}x{size[1]}, {threads} threads: ours {1000 * median['ours']:.0f} ms,"
        f" PyTorch's ONNX {1000 * median['pytorch']:.0f} ms (ratio"
        f" {median['ours'] / median['pytorch']:.3f}), our engine {1000 * median['engine']:.0f} ms"
        f" (ratio {median['ours'] / median['engine']:.3f}); logits apart by {apart:.1e}"
    )


if __name__ == "__main__":
    main()
