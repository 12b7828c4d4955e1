"""Command: serves a checkpoint over HTTP, and a page to try it.

    deeplab serve --checkpoint runs/camvid_r50_os16

The page is at http://127.0.0.1:8000/, the description of the interface at /docs.
"""

import argparse
import importlib.util
import ipaddress
import re
import socket
from collections.abc import Callable

from deeplab_jax import cli
from deeplab_jax.errors import ConfigError, ResourceError
from deeplab_jax.utils import steps

_EXAMPLES = """\
  deeplab serve --checkpoint runs/camvid_r50_os16
  deeplab serve --checkpoint runs/camvid_r50_os16 --size 360x480,720x960 --port 9000
  deeplab serve --checkpoint runs/camvid_r50_os16 --host 0.0.0.0 --allow-host demo.example.org
  curl -F image=@street.jpg "http://127.0.0.1:8000/predict?format=json"
Needs the extra: pip install 'deeplab_jax[serve]'. Answers are the bytes that deeplab predict writes
for the image by itself. The first image of a size compiles the network, which takes seconds;
--size does so at the start. Ctrl-C or SIGTERM: what was accepted is finished; again: at once."""
_LIBRARIES = "starlette", "uvicorn", "python_multipart"
MAX_PIXELS = 80_000_000  # that of `data.images`, which loads NumPy
MAX_BYTES = 2**28  # half of `limits.MEMORY`: more would always be told to come again
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


def main(argv: list[str]) -> None:
    """Parses arguments and serves until a signal.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("serve", _EXAMPLES)
    text = "a run's directory, converted weights, or a folder of deeplab export"
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help=text)
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    cli.add_weights(parser)
    text = "address to listen at (127.0.0.1: this machine alone); 0.0.0.0: all of this machine's"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    text = "port to listen at (8000); 0 takes a free one"
    parser.add_argument("--port", type=_whole(0, 65535), default=8000, help=text)
    text = "names, separated by commas, by which browsers may call the server, beside its address"
    parser.add_argument("--allow-host", metavar="LIST", help=text)
    text = "sizes of images, such as 360x480 (height x width), for which the network is compiled at"
    text += " the start; default: the recipe's data.crop_size, or the size of a StableHLO file"
    parser.add_argument("--size", metavar="LIST", help=text)
    text = f"largest image file in bytes, at most {MAX_BYTES} (20000000)"
    kind = _whole(1, MAX_BYTES)
    parser.add_argument("--max-bytes", metavar="N", type=kind, default=20_000_000, help=text)
    text = f"largest image, at most {MAX_PIXELS} (16000000); a larger one is not decoded"
    kind = _whole(1, MAX_PIXELS)
    parser.add_argument("--max-pixels", metavar="N", type=kind, default=16_000_000, help=text)
    text = "images that may wait for the network (32); to more the answer is 503"
    parser.add_argument("--queue", metavar="N", type=_whole(1, 10_000), default=32, help=text)
    text = "seconds that an image waits for its turn before the answer 503, and that a client may"
    text += " take for its headers and the start of its image before the answer 408 (4)"
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=4.0, help=text)
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the checkpoint's recipe")
    args, overrides = parser.parse(argv)
    cli.refuse_empty(args, "--checkpoint", "--host", "--allow-host")
    sizes = _sizes(args.size, args.max_pixels)
    hosts, is_local = _hosts(args.host, args.allow_host or "")
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        what = f"needs {', '.join(missing)}, not installed"
        raise ResourceError("deeplab serve", what, "pip install 'deeplab_jax[serve]'")
    if steps.is_exported(args.checkpoint):
        steps.refuse_changes(args.checkpoint, [*overrides, *_flags(args.step, args.weights)])
    else:
        steps.check(args.checkpoint, args.step)
        from deeplab_jax.config.recipe import check_values

        check_values(overrides)
    import deeplab_jax
    from deeplab_jax.serve.listen import bind

    with bind(args.host, args.port) as listener:  # as all above before JAX loads
        from deeplab_jax.serve.limits import Limits
        from deeplab_jax.serve.run import serve

        model = deeplab_jax.load(args.checkpoint, args.step, overrides, args.weights)
        limits = Limits(args.max_bytes, args.max_pixels, args.queue, args.timeout, hosts, is_local)
        serve(listener, model, limits, sizes or [model.usual_size])


def _flags(step: str, weights: str | None) -> list[str]:
    """Returns the given flags that choose between what a run holds."""
    given = (("--step", None if step == "latest" else step), ("--weights", weights))
    return [f"{flag} {value}" for flag, value in given if value is not None]


def _whole(low: int, high: int) -> Callable[[str], int]:
    """Returns what reads a whole number from `low` to `high`."""

    def read(text: str) -> int:
        if not (text.isdecimal() and low <= int(text) <= high):
            what = f"must be a whole number from {low} to {high}, got {text}"
            raise argparse.ArgumentTypeError(what)
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be seconds from 0.1 to 3600, got {text}")
    return seconds


def _sizes(text: str | None, max_pixels: int) -> list[tuple[int, int]]:
    """Returns the (height, width) of each size in --size."""
    sizes = []
    for part in [] if text is None else text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})x(\d{1,6})\s*", part)
        height, width = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 0 < height * width <= max_pixels:
            what = f"must be HEIGHTxWIDTH of 1 to {max_pixels} pixels, got {part!r}"
            raise ConfigError("--size", what, "give such as --size 360x480,720x960")
        sizes.append((height, width))
    return sizes


def _hosts(host: str, allowed: str) -> tuple[tuple[str, ...], bool]:
    """Returns (what Host may name, whether other machines cannot reach the address)."""
    names = [name.strip().lower() for name in allowed.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]", name):
            what = f"{name!r} is no name of a host"
            raise ConfigError("--allow-host", what, "give it without http:// and without a port")
    try:
        is_local = ipaddress.ip_address(host).is_loopback
        own = [f"[{host}]" if ":" in host else host]
    except ValueError:
        is_local, own = host.lower() == "localhost", [host.lower()]
    if not is_local:
        own.append(socket.gethostname().lower())
    return tuple(dict.fromkeys([*_LOCAL, *own, *names])), is_local


if __name__ == "__main__":
    cli.run(main)
