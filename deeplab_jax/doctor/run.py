"""One visit of the doctor: survey, findings, report, recipe."""

import time
from collections.abc import Sequence

from deeplab_jax.config.recipe import load_recipe
from deeplab_jax.doctor import hours, layouts, propose, recipe, rules, survey, text
from deeplab_jax.errors import DataError


def run(
    source: str, overrides: Sequence[str] | None, json_path: str | None,
    recipe_path: str | None = None, val_fraction: float = 0.2, seed: int = 0,
) -> None:  # fmt: skip
    """Checks a data set, prints the report, and writes the files that were asked for.

    `source` is a folder of images and masks, with `overrides` None; else a recipe by path or name,
    with `overrides` as `--config.x=y`. `val_fraction` and `seed` split a folder that has no split.

    Raises:
      DataError: the data set has errors.
    """
    began = time.perf_counter()
    layout, config = None, None
    if overrides is not None:
        config = load_recipe(source, overrides)
        found = survey.survey_recipe(config)
        print(f"{found.root}, as {source} says\n")
    else:
        layout = layouts.guess(source)
        if recipe_path:
            recipe.check_free(recipe_path, layout)
        print(f"{layout.data.root}\n  {layout.why}\n", flush=True)
        found = survey.survey_folder(layout)
    speed = text.speed(found, time.perf_counter() - began)
    findings = rules.check(found)
    if layout and recipe_path:
        findings = propose.settle(found, findings)
    print(text.to_text(found, findings, speed))
    if config:
        images = len(found.of_split(config.data.train_split))
        words = [source, *(overrides or ())]
        print(hours.of_recipe(hours.this_machine(), config, images, words))
    if json_path:
        text.write_json(json_path, found, findings, speed)
    if layout and recipe_path:
        proposal = propose.propose(found, layout, hours.this_machine())
        recipe.write(proposal, recipe_path, val_fraction, seed)
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        what = f"{errors} kind{'s' if errors > 1 else ''} of error, listed above"
        raise DataError(str(found.root), what, "mend them: training stops at them or learns them")
