"""Command: exports a network with its proof: ONNX, StableHLO, safetensors.

    deeplab export --checkpoint runs/camvid_r50_os16 --format onnx --output camvid_onnx

What is written is in `deeplab_jax.export.write`.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError
from deeplab_jax.utils import steps

if TYPE_CHECKING:
    from deeplab_jax.checkpoint import Info
    from deeplab_jax.export.write import TensorWriter
    from deeplab_jax.inference.segmenter import Segmenter

_EXAMPLES = """\
  deeplab export --checkpoint runs/camvid_r50_os16 --format onnx --output camvid_onnx
  deeplab export --checkpoint runs/mine --step best --format onnx,safetensors --output mine_files
  deeplab export --checkpoint runs/mine --format stablehlo --size 360x480 --platforms cuda \\
      --output mine_gpu
Input is uint8 RGB (batch, height, width, 3); the file normalises it and, where the recipe has
eval.resize_base, fits it as deeplab predict does. The folder holds model_card.md, labels.json, a
sample with its results, SHA256SUMS, and verify.py, which needs NumPy and the runtime alone."""
_FORMATS = ("onnx", "stablehlo", "safetensors")
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def main(argv: list[str]) -> None:
    """Parses arguments and writes the folder.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("export", _EXAMPLES)
    add = parser.add_argument
    text = "a run's directory, or converted weights"
    add("--checkpoint", metavar="DIR", required=True, help=text)
    add("--step", default="latest", help="latest, best or a number")
    cli.add_weights(parser)
    text = f"some of {','.join(_FORMATS)}; safetensors holds weights for PyTorch, and no network"
    add("--format", metavar="LIST", required=True, help=text)
    add("--output", metavar="DIR", required=True, help="a new folder")
    text = (
        "labels (default): class ids uint8 and confidence at the input's size; logits: scores at a"
        " quarter of it"
    )
    add("--output-kind", choices=("labels", "logits"), help=text)
    text = "height and width of images for stablehlo, such as 360x480; onnx takes any"
    add("--size", metavar="HxW", help=text)
    text = f"some of {','.join(_PLATFORMS)}, that stablehlo runs on; default: cpu"
    add("--platforms", metavar="LIST", help=text)
    text = "of safetensors: sssegmentation (default) or mmsegmentation"
    add("--dialect", metavar="NAME", help=text)
    add("--force", action="store_true", help="replace an exported folder")
    add("--config.x", metavar="VALUE", help="any field of the checkpoint's recipe")
    args, overrides = parser.parse(argv)
    cli.refuse_empty(args, "--checkpoint", "--platforms", "--dialect")
    formats = _listed("--format", args.format, _FORMATS)
    size, platforms = _for_stablehlo(args.size, args.platforms, formats)
    if args.output_kind is not None and formats == ("safetensors",):
        fix = "add onnx or stablehlo to --format, or leave it out"
        raise ConfigError("--output-kind", "is for onnx and stablehlo", fix)
    if args.dialect is not None and "safetensors" not in formats:
        raise ConfigError("--dialect", "is for safetensors", "add it to --format, or leave it out")
    from deeplab_jax.export import place

    place.check(args.output, args.force)
    from convert.to_pytorch import check_dialect

    check_dialect(args.dialect, of_networks=True)
    steps.check(args.checkpoint, args.step)  # this and all above before JAX loads
    from deeplab_jax.export.write import Request, export

    exported = export(
        args.checkpoint,
        args.output,
        Request(formats, args.output_kind or "labels", size, platforms),
        _tensor_writer(args.dialect),
        step=args.step,
        overrides=overrides,
        weights=args.weights,
        force=args.force,
    )
    from deeplab_jax.inference.exported import standalone

    digest = standalone.digest(exported.path / standalone.SUMS)
    print(f"SHA-256 of {standalone.SUMS}, to be told to who gets the folder: {digest}")
    cli.finish(exported.path, "verify", exported.path)


def _listed(flag: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the words of a list, each once, in their known order."""
    words = [word for word in text.replace(" ", "").split(",") if word]
    wrong = [word for word in words if word not in known]
    if wrong or not words:
        what = f"{wrong[0]!r} is none of them" if wrong else "names nothing"
        raise ConfigError(flag, what, f"give some of {','.join(known)}")
    return tuple(word for word in known if word in words)


def _for_stablehlo(
    size: str | None, platforms: str | None, formats: tuple[str, ...]
) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """Returns the size of images, and the platforms."""
    if "stablehlo" not in formats:
        for flag, value in (("--size", size), ("--platforms", platforms)):
            if value is not None:
                fix = "add stablehlo to --format, or leave it out"
                raise ConfigError(flag, "is for stablehlo", fix)
        return None, ()
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size or "")
    if match is None:
        what = "is needed: StableHLO takes one size"
        if size is not None:
            what = f"must be HEIGHTxWIDTH, each from 1 to 99999 pixels, got {size}"
        raise ConfigError("--size", what, "give height and width, such as --size 360x480")
    return (int(match[1]), int(match[2])), _listed("--platforms", platforms or "cpu", _PLATFORMS)


def _tensor_writer(dialect: str | None) -> "TensorWriter":
    """Returns the writer of safetensors, which knows PyTorch's names."""

    def write(segmenter: "Segmenter", info: "Info", path: Path) -> str:
        from convert.pth import write_safetensors
        from convert.to_pytorch import to_state_dict

        where = str(segmenter.path)
        tensors, name, _ = to_state_dict(where, segmenter.variables, info, dialect)
        write_safetensors(path, tensors)
        return name

    return write


if __name__ == "__main__":
    cli.run(main)
