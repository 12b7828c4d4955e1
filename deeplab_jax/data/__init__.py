"""Reads files and makes batches with NumPy and OpenCV; imports no JAX, and grain only on use."""

from deeplab_jax.data.dataset import Dataset
from deeplab_jax.data.open import open_dataset
from deeplab_jax.data.pipeline import SampleOrder, TrainBatch, eval_examples, train_batches

__all__ = [
    "Dataset", "SampleOrder", "TrainBatch", "eval_examples", "open_dataset", "train_batches"
]  # fmt: skip
