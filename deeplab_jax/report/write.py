"""Writing of the page: its content gathered, then built."""

import json
from collections.abc import Sequence
from pathlib import Path

from deeplab_jax.account.goodput import read_account
from deeplab_jax.account.utilisation import peak_of, utilisation
from deeplab_jax.config import Config, from_dict
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.data.colors import safe_palette
from deeplab_jax.distributed import hosts
from deeplab_jax.errors import ConfigError, DeepLabError, clip
from deeplab_jax.evaluation.run import EVALUATION_FILE, open_validation
from deeplab_jax.evaluation.summary import Evaluation
from deeplab_jax.inference.segmenter import Segmenter, load
from deeplab_jax.report import checking, page, pictures
from deeplab_jax.training.log import read_log
from deeplab_jax.utils.atomic import atomic_write

_LOG = "log.jsonl"  # of a run, in its work directory


def write_again(folder: Path, output: Path, overrides: Sequence[str]) -> Evaluation:
    """Writes the page of an evaluated checkpoint; returns the evaluation.

    `folder` is the checkpoint directory, with `evaluation.json`. Overrides, such as
    "--config.data.root=elsewhere", are applied after the evaluation's own. If the weights or images
    cannot be read, the page has no pictures and says why; a page that exists is then kept.

    Raises:
      ConfigError: `evaluation.json` is not of this version, or an override cannot be used.
      DeepLabError: the weights or images cannot be read, and `output` exists.
    """
    numbers = folder / EVALUATION_FILE
    evaluation = read_evaluation(numbers)
    overrides = [*evaluation["overrides"], *overrides]
    try:
        config = from_dict(evaluation["config"])
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise _unusable(numbers, f"config: {clip(str(error))}") from error
    config = apply_overrides(config, overrides)
    try:
        segmenter = load(folder, evaluation["step"], overrides, evaluation.get("weights"))
    except DeepLabError as error:
        _check_absent(output, error)
        palette, notes = safe_palette(config.model.num_classes), [_no_pictures(error)]
        log = read_log(folder / _LOG)
        hours = _hours(folder, config)
        _write(output, page.PageContent(evaluation, config, log, palette, (), notes, hours))
    else:
        _draw(output, evaluation, segmenter, overrides, keeps=True)
    return evaluation


def write_evaluated(
    segmenter: Segmenter, evaluation: Evaluation, json_file: Path | None = None
) -> Path | None:
    """Writes the page about what `evaluate_checkpoint` returned.

    The page is `report.html` in the checkpoint, or with `json_file`, as for `evaluate_checkpoint`,
    `<its stem>_report.html` beside it. The first host writes it. Nothing is written if `json_file`
    is not a regular file, such as /dev/stdout. Returns the page's path; None where none is.
    """
    output = segmenter.path / "report.html"
    if json_file:
        output = json_file.with_name(f"{json_file.stem}_report.html")
    json_file = json_file or segmenter.path / EVALUATION_FILE
    if not json_file.is_file() or json_file.parent == Path("/dev"):  # also `--json /dev/stdout > x`
        return None
    if hosts.is_primary():
        _draw(output, evaluation, segmenter, evaluation["overrides"])
    return output


def read_evaluation(path: Path) -> Evaluation:
    """Returns the content of an `evaluation.json`.

    Raises:
      ConfigError: the file is not JSON, or not what this version writes; says what is wrong.
    """
    try:
        evaluation: Evaluation = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unusable(path, f"no JSON: {clip(str(error))}") from error
    if fault := checking.find_fault(evaluation):
        raise _unusable(path, fault)
    return evaluation


def _unusable(path: Path, fault: str) -> ConfigError:
    fix = f"run deeplab evaluate --checkpoint {path.parent} again"
    return ConfigError(str(path), f"is not what evaluate writes ({fault})", fix)


def _check_absent(output: Path, error: DeepLabError) -> None:
    """Raises the error that left a page without pictures if another page is in its place."""
    if output.exists():
        fix = f"{error.fix}; {output} is kept, for a page without pictures name another --output"
        raise type(error)(error.where, error.what, fix) from error


def _no_pictures(error: DeepLabError) -> str:
    print(f"warning: no pictures: {error}", flush=True)
    return f"No pictures: {error}."


def _draw(
    output: Path,
    evaluation: Evaluation,
    segmenter: Segmenter,
    overrides: Sequence[str],
    keeps: bool = False,
) -> None:
    """Writes the page; without pictures, and with the reason, if the data cannot be read.

    `overrides` are those that the segmenter's configuration has. With `keeps`, a page that exists
    is not replaced by one without pictures: the error is raised.
    """
    config, images, notes = segmenter.config, [], []
    try:
        dataset = open_validation(segmenter, overrides, evaluation["split"])
        images = [
            *pictures.worst_and_best(evaluation, dataset, lambda image: segmenter(image).labels)
        ]
    except DeepLabError as error:
        if keeps:
            _check_absent(output, error)
        notes.append(_no_pictures(error))
    changed = [image.name for image in images if not image.is_as_evaluated()]
    if changed:
        notes.append(
            f"{len(changed)} pictures score otherwise than in the evaluation, first {changed[0]}: "
            "the data or the checkpoint have changed since. Evaluate again."
        )
    log, embedded = read_log(segmenter.path / _LOG), pictures.embed(images)
    palette, hours = segmenter.palette, _hours(segmenter.path, config)
    _write(output, page.PageContent(evaluation, config, log, palette, embedded, notes, hours))


def _hours(folder: Path, config: Config) -> page.Hours | None:
    """Returns the account of the run in a folder, by its log; None if no line tells times."""
    try:
        account = read_account(folder)
    except ConfigError:
        return None
    peak = peak_of(account, config)
    return page.Hours(account, peak and utilisation(account, config, peak), peak)


def _write(output: Path, content: page.PageContent) -> None:
    text = page.build(content)
    with atomic_write(output) as file:
        file.write(text.encode("utf-8", "replace"))  # ids may hold half a surrogate pair
