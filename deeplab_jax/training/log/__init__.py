"""Output of a run under way: `log.jsonl`, curves, the line on the screen, and `progress.png`."""

from deeplab_jax.training.log.account import PARTS, Account, beat
from deeplab_jax.training.log.curves import Curves
from deeplab_jax.training.log.display import Display, Speed, peak_memory, smooth
from deeplab_jax.training.log.lines import EARLY, JsonLog, Log, read_log

__all__ = [
    "EARLY",
    "PARTS",
    "Account",
    "Curves",
    "Display",
    "JsonLog",
    "Log",
    "Speed",
    "beat",
    "peak_memory",
    "read_log",
    "smooth",
]
