"""Class weights from the pixels of each class in the training labels (`config.loss`)."""

import dataclasses

import numpy as np

from deeplab_jax.config import Config
from deeplab_jax.evaluation.label_counts import LabelCounts


def compute(kind: str, counts: LabelCounts) -> tuple[float, ...]:
    """Returns a weight for each class; 0 for a class without a pixel, which no label asks for.

    With n[c] pixels of class c, and P classes that have any:

    - "inverse": sum(n) / (P n[c]); all classes together weigh alike. Source: scikit-learn's
      "balanced", after King and Zeng 2001 (Logistic Regression in Rare Events Data).
    - "median_frequency": median(f) / f[c], where f[c] is n[c] over the valid pixels of the masks
      that hold c. A class that is rare because few images have it weighs less than by "inverse".
      Source: Eigen and Fergus 2015 (Predicting Depth, Surface Normals and Semantic Labels).
    - "effective_number": (1 - b) / (1 - b^n[c]), scaled to a sum of P. Source: Cui et al. 2019
      (Class-Balanced Loss), sec. 3 and 4, whose b = 1 - 1 / N has N as a free parameter;
      here N is the mean of n over the P classes. So classes above it weigh nearly alike, and rare
      ones nearly as by "inverse".

    The loss is divided by the sum of its pixels' weights, so that a common factor changes nothing.

    Args:
      kind: one of the three.
      counts: of the training labels.
    """
    n = counts.pixels[:-1].astype(np.float64)
    has = n > 0
    weights = np.zeros(len(n))
    if not has.any():  # said elsewhere: nothing can be learnt
        return tuple(weights + 1)
    if kind == "inverse":
        weights[has] = n.sum() / (has.sum() * n[has])
    elif kind == "median_frequency":
        frequency = n[has] / counts.around[has]
        weights[has] = np.median(frequency) / frequency
    else:
        assert kind == "effective_number"
        one = 1 / n[has].mean()  # 1 - b
        raw = one / -np.expm1(n[has] * np.log1p(-one)) if one < 1 else np.ones(has.sum())
        weights[has] = raw * (has.sum() / raw.sum())
    return tuple(weights.tolist())


def resolved(config: Config, class_weights: tuple[float, ...] = ()) -> Config:
    """Returns a configuration with numbers for the class weights that it says how to compute.

    Args:
      config: the run's configuration.
      class_weights: of `compute`; empty: 1 each, for a step that is only compiled or measured.
    """
    if config.loss.class_weighting == "none":
        return config
    numbers = class_weights or (1.0,) * config.model.num_classes
    loss = dataclasses.replace(config.loss, class_weights=numbers, class_weighting="none")
    return dataclasses.replace(config, loss=loss)
