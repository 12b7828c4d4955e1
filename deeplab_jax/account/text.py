"""The account of a run in words."""

from collections.abc import Iterator

from deeplab_jax.account.goodput import Account
from deeplab_jax.utils.progress import duration

_MEANING = {
    "lost work": "computed again after a kill",
    "stopped": "no process ran",
    "unknown": "no line of the log tells",
}


def rows(account: Account) -> list[tuple[str, str, str, str]]:
    """Returns (part, time, percent of the wall time, remark) for each part, and for their sum."""
    remarks = dict(_MEANING)
    if account.lost_steps:
        plural = "s" * (account.lost_steps > 1)
        remarks["lost work"] = f"{account.lost_steps} step{plural} computed again after a kill"
    found = [
        (name, _time(seconds), f"{100 * seconds / max(account.wall, 1e-9):.1f} %",
         remarks.get(name, "") if seconds else "")
        for name, seconds in account.seconds.items()
    ]  # fmt: skip
    return [*found, ("wall time", _time(account.wall), "100.0 %", "")]


def summary(account: Account, utilisation: float | None, peak: float | None) -> list[str]:
    """Returns sentences on steps, processes, images and utilisation.

    Args:
      account: of the run.
      utilisation: model FLOP utilisation, a fraction; None where not known.
      peak: FLOP/s of one device that it is measured by.
    """
    over_all, training = account.images_per_second()
    number = len(account.processes)
    ends = [process.is_ended for process in account.processes]
    lines = [
        f"steps {account.start} to {account.step} in {number} process{'es' * (number > 1)},"
        f" {ends[:-1].count(False)} of them killed",
        f"{account.images} images: {over_all:.2f} a second of wall time, {training:.2f} a second"
        " of steps and input wait",
    ]
    if utilisation is not None and peak is not None:
        percent = f"{100 * utilisation:.2f} %"
        lines.append(
            f"model FLOP utilisation {percent} of {peak / 1e12:g} TFLOP/s a device, over steps and"
            " input wait"
        )
    return [*lines, *_remarks(account)]


def render(account: Account, utilisation: float | None, peak: float | None) -> list[str]:
    """Returns the account as lines of text; for the arguments see `summary`."""
    table = [
        f"{name:12}{time:>12}{share:>9}  {remark}".rstrip()
        for name, time, share, remark in rows(account)
    ]
    return [*table, "", *summary(account, utilisation, peak)]


def _remarks(account: Account) -> Iterator[str]:
    if not account.processes[-1].is_ended:
        yield "the last process still runs or was killed: the account ends at its last line"
    if account.start:
        yield f"the first {account.start} steps are not in the account: nothing timed them"
    if account.set_back:
        yield f"the clock went back by {account.set_back:.0f} s: as much may be missing in stopped"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
