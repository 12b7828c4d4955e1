"""Times evaluation against a PyTorch loop on the same weights, images and threads.

    python scripts/bench_inference.py [--case camvid --data DIR] [--alone]

Both evaluate in alternation, so that a busy machine slows both. The first pass, which compiles, is
reported apart. Needs torch, which nothing else here does. docs/performance.md has what it printed.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from convert import keymap
from deeplab_jax.config import freeze, get_config
from deeplab_jax.data import open_dataset
from deeplab_jax.data.images import write_png_indices
from deeplab_jax.evaluation.evaluator import Evaluator
from deeplab_jax.models import build_model, init_variables
from deeplab_jax.models.preprocess import MEAN, STD

_REFERENCE = Path(__file__).parents[1] / "tests" / "golden" / "torch_reference.py"
_PARTS = 8  # of a pass: one of ours, one of PyTorch's, in turn


def main() -> None:
    """Prints the figures of one case, a line a pass."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", metavar="DIR", help="CamVid: images/val beside labels/val")
    parser.add_argument("--case", choices=("camvid", "mixed"), default="mixed")
    parser.add_argument("--images", type=int, default=120, help="of the mixed sizes")
    parser.add_argument("--long-side", type=int, default=512, help="largest of the mixed sizes")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--alone", action="store_true", help="without PyTorch: our memory")
    args = parser.parse_args()
    if args.case == "camvid" and not args.data:
        print("skipped: --data names no CamVid")
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.case == "mixed":
            draw_images(Path(folder), args.images, args.long_side)
        config = get_config("folder", args.depth, 16)
        config.model.num_classes = 11
        config.data.root = args.data if args.case == "camvid" else folder
        measure(freeze(config), args)


def draw_images(root: Path, count: int, long_side: int) -> None:
    """Writes `count` images and masks of nearly all different sizes, both orientations."""
    import cv2

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
    palette = np.zeros((11, 3), np.uint8)
    for index in range(count):
        size = sorted((int(rng.integers(long_side // 2, long_side + 1)),
                       int(rng.integers(long_side * 2 // 3, long_side + 1))))  # fmt: skip
        height, width = size if index % 3 else size[::-1]
        blocks = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
        image = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
        name = f"{index:03d}"
        cv2.imwrite(str(root / "images" / "val" / f"{name}.jpg"), image)
        label = (image[..., 0] % 12).astype(np.uint8)
        label[label == 11] = 255
        write_png_indices(root / "labels" / "val" / f"{name}.png", label, palette)


def measure(config, args) -> None:
    """Evaluates by both, in alternating parts, and prints times, memory and programs."""
    model = build_model(config.model)
    variables = jax.jit(lambda: init_variables(model, 0))()
    dataset = open_dataset(config.data, config.model.num_classes, "val")
    theirs = None if args.alone else TorchLoop(config.model, variables, dataset, args.threads)
    ours = Evaluator(model, dataset, ())
    sizes = {dataset.read(index)[0].shape for index in range(len(dataset))}
    versions = f"jax {jax.__version__}" + (f", torch {theirs.torch.__version__}" if theirs else "")
    print(f"{len(dataset)} images, {len(sizes)} sizes, {versions}, {args.threads} threads, "
          f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)  # fmt: skip
    ours._plan(list(range(len(dataset))))  # as one evaluation of all would
    parts = [list(range(k, len(dataset), _PARTS)) for k in range(_PARTS)]
    ratios: list[float] = []
    for number in range(args.passes):
        seconds, differ = [0.0, 0.0], 0
        for part in parts:
            start = time.perf_counter()
            result = ours(variables, part)
            seconds[0] += time.perf_counter() - start
            if theirs is None:
                continue
            start = time.perf_counter()
            confusion = theirs(part)
            seconds[1] += time.perf_counter() - start
            differ += int(np.abs(result.confusion - confusion).sum()) // 2
        record = {
            "pass": number,
            "ours_s": round(seconds[0], 1),
            "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "resident_MiB": _resident(),
            "programs": len(ours.engine.programs),
        }
        if theirs is not None:
            ratios.append(seconds[0] / seconds[1])
            record |= {"torch_s": round(seconds[1], 1), "ratio": round(ratios[-1], 3)}
            record["pixels_that_differ"] = differ
        print(json.dumps(record), flush=True)
    if ratios[1:]:
        print(f"ratio in steady state: {statistics.median(ratios[1:]):.3f}")


def _resident() -> int:
    """Returns MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


class TorchLoop:
    """The usual loop: read, normalise, network, resize, argmax, count; one image at a time."""

    def __init__(self, model_config, variables, dataset, threads):
        spec = importlib.util.spec_from_file_location("torch_reference", _REFERENCE)
        reference = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(reference)
        self.torch, self.dataset, self.classes = reference.torch, dataset, model_config.num_classes
        self.net = reference.network(model_config).eval()
        tensors = keymap.to_tensors(jax.device_get(variables), {}, model_config.depth)
        reference.load(self.net, tensors)
        self.torch.set_num_threads(threads)

    def __call__(self, indices) -> np.ndarray:
        """Returns the confusion matrix int64 (C, C)."""
        torch, total = self.torch, np.zeros((self.classes, self.classes), np.int64)
        for index in indices:
            image, label = self.dataset.read(index)
            x = torch.from_numpy((image.astype(np.float32) - MEAN) * (1 / STD)).permute(2, 0, 1)
            with torch.inference_mode():
                logits = self._logits(x[None])
                scores = torch.nn.functional.interpolate(
                    logits, label.shape, mode="bilinear", align_corners=False
                )
                prediction = scores.argmax(1)[0].numpy()
            valid = label != 255
            cells = label[valid].astype(np.int64) * self.classes + prediction[valid]
            total += np.bincount(cells, minlength=self.classes**2).reshape(total.shape)
        return total

    def _logits(self, x):
        """Runs all but the auxiliary head, which evaluation does not need."""
        net = self.net
        low, _, _, top = net.backbone_net(x)
        top = self.torch.nn.functional.interpolate(
            net.aspp_net(top), low.shape[2:], mode="bilinear", align_corners=False
        )
        return net.decoder(self.torch.cat([top, net.shortcut(low)], 1))


if __name__ == "__main__":
    sys.exit(main())
