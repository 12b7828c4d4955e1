"""Measures how far we are from the PyTorch reference, and writes docs/parity.md.

    python tests/golden/write_parity.py [--output FILE]

Takes about ten minutes on two processor cores; runs on whatever JAX runs on.
"""

import argparse
import datetime
import functools
import os
from pathlib import Path

import compact
import jax
import measure
import numpy as np
import recipe

_PAGE = recipe.FOLDER.parents[1] / "docs" / "parity.md"
_TYPES = ("float64", "float32")


def main():
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=_PAGE)
    args = parser.parse_args()
    sections = [_head(), *_forward(), *_training(), *_rest()]
    args.output.write_text("\n".join(sections))
    print(f"written: {args.output}")


def _head():
    device = jax.devices()[0].device_kind
    device = f"{os.cpu_count()} processor cores" if device == "cpu" else device
    where = f"{device}, jax {jax.__version__}"
    return f"""# Parity with the PyTorch reference

Written by `python tests/golden/write_parity.py` on {datetime.date.today()}, {where}.

What is compared, and with what, stands in [tests/golden](../tests/golden/README.md): the
reference's own code, run in float64 and stored with float32's precision, so that 1e-7 of a value
is agreement. The columns are our error in float64, ours in float32, and PyTorch's own in float32,
which is the noise to expect. `scripts/test.sh --all` holds each quantity to a tolerance; here
stands what one run gave.
"""


def _forward():
    yield "## Logits\n"
    yield "Largest difference of any sampled value; logits spread over 1 to 4 (ResNet-18: 117).\n"
    yield _row("network", "image", "head", *_TYPES, "PyTorch float32")
    yield _row(*["---"] * 6)
    for name in [*compact.TABLE, *compact.DIALECTS]:
        errors = {dtype: _in_precision(dtype, functools.partial(_logits, name)) for dtype in _TYPES}
        for case, fact in measure.facts("forward.json")[name].items():
            for head in ("logits", "aux"):
                noise = fact["pytorch_float32_error"][head]
                yield _row(name, case, head, *(errors[t][case, head] for t in _TYPES), noise)
        stages = (errors[t]["65x97", "stages"] for t in _TYPES)
        yield _row(name, "65x97", "inner stages, worst", *stages, "-")


def _logits(name, dtype):
    errors = {}
    for is_long in (False, True):
        for case, pairs in measure.forward(name, *measure.network(name, dtype), is_long):
            differences = {key: _difference(pair) for key, pair in pairs.items()}
            for head in ("logits", "aux"):
                errors[case, head] = differences.pop(head)
            errors[case, "stages"] = max(differences.values(), default=0)
    return errors


def _training():
    yield "\n## Five optimiser steps\n"
    yield (
        "One batch of four, dropout off. Relative: of a norm to itself, of sampled values to the"
        " largest of their tensor. A quantity of all parameters has the worst and the median.\n"
    )
    for name in compact.TRAININGS:
        noise = measure.facts("train.json")[name]["pytorch_float32_error"]
        runs = {t: _in_precision(t, functools.partial(measure.training, name)) for t in _TYPES}
        yield f"### {name}\n"
        yield _row("quantity", *_TYPES, "PyTorch float32")
        yield _row(*["---"] * 4)
        for step in range(5):
            errors = (_relative(runs[t]["loss"])[step] for t in _TYPES)
            yield _row(f"loss, step {step + 1}", *errors, noise["loss_total"][step])
        for quantity, key in {
            "grad/l2": "grad_l2",
            "grad/value": "",
            "delta_after_1/l2": "delta_after_1_l2",
            "delta_after_1/value": "",
            "delta_after_5/l2": "delta_after_5_l2",
            "delta_after_5/value": "",
            "bn_after_1/value": "",
            "bn_after_5/l2": "",
        }.items():
            for kind, reduce in (("worst", np.max), ("median", np.median)):
                errors = (reduce(_relative(runs[t][quantity])) for t in _TYPES)
                yield _row(f"{quantity}, {kind}", *errors, noise.get(f"{key}_{kind}", "-"))
        errors = [runs[t]["eval_after_5/logits"] for t in _TYPES]
        errors = (_difference(pair) / np.abs(pair[1]).max() for pair in errors)
        yield _row("evaluation logits after 5", *errors, noise["eval_after_5/logits"])
        yield ""


def _rest():
    yield "## Everything else\n"
    yield _row("quantity", "difference")
    yield _row("---", "---")
    rows = {
        "scores of a whole image at its final size": lambda _: measure.whole_image("float64"),
        "loss and its gradient": lambda _: measure.loss(),
        "learning rates of every row's schedule": lambda _: measure.schedule(),
    }
    for text, function in rows.items():
        for key, pair in _in_precision("float64", function).items():
            yield _row(f"{text}: {key}", _difference(pair))
    for case in ("plain", "absent", "many"):
        for key, pair in measure.evaluator(case).items():
            yield _row(f"evaluator, {case}: {key}", _difference(pair))
    for key, pair in measure.training_samples().items():
        what = "training samples: " + key + (" (float16 there)" if key == "images" else "")
        yield _row(what, _difference(pair))
    yield ""


def _in_precision(dtype, function):
    with jax.enable_x64(dtype == "float64"):
        return function(dtype)


def _difference(pair):
    got, expected = (np.asarray(value, np.float64) for value in pair)
    return float(np.nanmax(np.abs(got - expected)))


def _relative(pair):
    got, expected = (np.asarray(value).reshape(len(value), -1) for value in pair)
    return np.abs(got - expected).max(1) / np.abs(expected).max(1)


def _row(*cells):
    texts = (cell if isinstance(cell, str) else f"{cell:.1e}" if cell else "0" for cell in cells)
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    main()
