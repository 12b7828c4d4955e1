"""Runs of Weights & Biases, offline."""

import importlib
import json

import pytest
from PIL import Image

from deeplab_jax import config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.training.log.points import Point

pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
Record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
Wandb = importlib.import_module("deeplab_jax.training.log.wandb").Wandb
CONFIG = apply_overrides(config.get_config("folder"), ["--config.log.wandb=mine"])


def records_of(path):
    """Yields the records of an offline file: LevelDB's log format after a header of 7 bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # the rest of a block
            place += 2**15 - place % 2**15
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts = (b"" if kind in (1, 2) else parts) + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)


def rows_of(workdir):
    """Returns {id: [{name: value}]} of the offline files in the order they were begun."""
    found = {}
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        rows = found.setdefault(path.stem.removeprefix("run-"), [])
        for record in records_of(path):
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append({k: v for k, v in items.items() if k[0] != "_" or k == "_step"})
    return found


def point(step, value, is_evaluation=False):
    name = "val/mean_iou" if is_evaluation else "train/loss"
    return Point(step, is_evaluation, {name: value})


@pytest.mark.process("starts the service of Weights & Biases three times")
def test_continued_run_has_each_point_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = []
    points = [point(10, 1.0), point(20, 2.0), point(20, 0.5, True), point(30, 3.0)]
    first = Wandb(tmp_path, 0, CONFIG, [], False, said.append)
    for new in points:
        first.add(new)
    first.close()  # step 30 is logged, and not saved
    again = Wandb(tmp_path, 20, CONFIG, points, False, said.append)
    for new in (point(30, 3.0), point(30, 0.6, True), point(40, 4.0)):
        again.add(new)
        again.show(new.step, {"val/a": Image.new("RGB", (4, 2))})
    again.sync()
    (rows,) = rows_of(tmp_path).values()
    again.go_back(20)
    again.add(point(30, 9.0))
    again.close()
    assert f"wandb sync {tmp_path}/wandb/offline-run-" in said[0]

    found = rows_of(tmp_path)
    assert len(found) == 2
    rows, beside = found.values()
    assert [row["step"] for row in rows] == [10, 20, 20, 30, 30, 40]
    assert [row["_step"] for row in rows] == [20, 40, 41, 60, 61, 80]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [1.0, 2.0, 3.0, 4.0]
    assert [row["val/mean_iou"] for row in rows if "val/mean_iou" in row] == [0.5, 0.6]
    assert "val/a/path" in rows[4]
    told = [row.get("train/loss", row.get("val/mean_iou")) for row in beside]
    assert told == [1.0, 2.0, 0.5, 9.0]
    last = json.loads((tmp_path / "wandb.json").read_text())
    assert list(found) == [said[0].split()[4], last["id"]]
