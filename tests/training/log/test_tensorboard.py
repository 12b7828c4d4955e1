"""Event files: their names, and that a continued run has each point once."""

import importlib
import sys

import pytest
from PIL import Image

from deeplab_jax import config
from deeplab_jax.training.log.points import Point

pytest.importorskip("tensorboard", reason="the extra [tensorboard] is not installed")
TensorBoard = importlib.import_module("deeplab_jax.training.log.tensorboard").TensorBoard
EventAccumulator = importlib.import_module(
    "tensorboard.backend.event_processing.event_accumulator"
).EventAccumulator
HParamsPluginData = importlib.import_module(
    "tensorboard.plugins.hparams.plugin_data_pb2"
).HParamsPluginData
CONFIG = config.freeze(config.get_config("folder"))


def curve(folder, name="train/loss"):
    """Returns [(step, value)] as TensorBoard reads it, without dropping anything."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}, purge_orphaned_data=False)
    events.Reload()
    return [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(name)]


def point(step, value):
    return Point(step, False, {"train/loss": value})


def test_continued_curve_has_each_step_once(tmp_path):
    first = TensorBoard(tmp_path, 0, CONFIG)
    for step, value in ((10, 1.0), (20, 2.0), (30, 3.0)):
        first.add(point(step, value))
    first.show(20, {"val/a": Image.new("RGB", (4, 2), "red")})
    first.sync()  # then it is killed
    with open(next(tmp_path.iterdir()), "ab") as file:
        file.write(b"cut off")
    again = TensorBoard(tmp_path, 20, CONFIG)
    again.add(point(30, 4.0))
    again.sync()
    assert curve(tmp_path) == [(10, 1.0), (20, 2.0), (30, 4.0)]
    again.go_back(10)
    again.add(point(20, 5.0))
    again.close()
    assert curve(tmp_path) == [(10, 1.0), (20, 5.0)]
    assert "tensorflow" not in sys.modules


def test_kill_while_a_file_is_copied_leaves_each_step_once(tmp_path):
    first = TensorBoard(tmp_path, 0, CONFIG)
    first.add(point(10, 1.0))
    first.close()
    (own,) = tmp_path.iterdir()  # nothing was kept
    (tmp_path / ".next").mkdir()
    (tmp_path / ".next" / own.name).write_bytes(own.read_bytes())
    (tmp_path / "events.out.tfevents.of.others").write_bytes(b"")
    TensorBoard(tmp_path, 10, CONFIG).close()
    assert len([*tmp_path.iterdir()]) == 3
    (tmp_path / "events.out.tfevents.of.others").unlink()
    assert curve(tmp_path) == [(10, 1.0)]


def test_pictures_and_fields_are_there(tmp_path):
    board = TensorBoard(tmp_path, 0, CONFIG)
    board.show(20, {"val/a": Image.new("RGB", (4, 2), "red")})
    board.go_back(20)
    board.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    (shown,) = events.Images("val/a")
    assert (shown.step, shown.width, shown.height) == (20, 4, 2)
    assert shown.encoded_image_string[1:4] == b"PNG"
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    fields = HParamsPluginData.FromString(content).session_start_info.hparams
    assert fields["train.lr"].number_value == 0.01
    assert fields["data.crop_size"].string_value == "512,512"
    assert len(fields) == len(config.flatten(CONFIG))
