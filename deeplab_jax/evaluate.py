"""Command: measures a checkpoint on its validation set.

    python -m deeplab_jax.evaluate --checkpoint runs/camvid_r50_os16

Writes `evaluation.json` and `report.html`. What measures is `deeplab_jax.evaluation`.
"""

from pathlib import Path

from deeplab_jax import cli
from deeplab_jax.distributed import cluster

_EXAMPLES = """\
  deeplab evaluate --checkpoint runs/camvid_r50_os16
  deeplab evaluate --checkpoint runs/camvid_r50_os16 --step best
  deeplab evaluate --checkpoint runs/camvid_r50_os16 --config.eval.resize_base=240,180"""


def main(argv: list[str]) -> None:
    """Parses arguments, evaluates, prints the table, writes the numbers and the report.

    Raises:
      DeepLabError: see `deeplab_jax.errors`; `cli.run` prints it.
    """
    parser = cli.Parser("evaluate", _EXAMPLES)
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="a run's directory")
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go, and FILE_report.html")
    parser.add_argument("--config.x", metavar="VALUE", help="any field of the checkpoint's recipe")
    cluster.add_arguments(parser)
    args, overrides = parser.parse(argv)
    numbers, page = Path(args.checkpoint, "evaluation.json"), Path(args.checkpoint, "report.html")
    if args.json:
        numbers = Path(args.json)
        page = numbers.with_name(f"{numbers.stem}_report.html")
    cluster.initialize(args.coordinator, args.num_processes, args.process_id)
    import jax

    from deeplab_jax.checkpoint import find_step
    from deeplab_jax.config import is_local
    from deeplab_jax.distributed import hosts
    from deeplab_jax.distributed.replicas import checksum
    from deeplab_jax.distributed.shared_dir import as_path
    from deeplab_jax.evaluation.run import evaluate_checkpoint
    from deeplab_jax.inference.segmenter import load
    from deeplab_jax.report.write import write_evaluated

    with hosts.watched(args.checkpoint):
        with hosts.sync_errors():
            if args.json and hosts.is_primary():
                cli.check_writable(numbers, "--json")
            as_path(args.checkpoint)
            step = find_step(args.checkpoint, args.step)
        common = [text for text in overrides if not is_local(text)]
        hosts.require_equal(hosts.software() | {"step": step, "arguments": common})
        with hosts.sync_errors():
            segmenter = load(args.checkpoint, step, overrides)
        if hosts.are_multiple():
            hosts.require_equal({"weights": hex(int(jax.jit(checksum)(segmenter.variables)))})
        evaluate_checkpoint(segmenter, numbers, overrides)
    if hosts.is_primary() and numbers.is_file():  # not with --json /dev/stdout
        write_evaluated(page, numbers, segmenter)


if __name__ == "__main__":
    cli.run(main)
