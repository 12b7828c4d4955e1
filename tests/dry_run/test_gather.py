import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deeplab_jax.config import get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.dry_run import estimate as estimate_lib
from deeplab_jax.dry_run import flops, gather, hardware
from deeplab_jax.dry_run import text as text_lib
from deeplab_jax.errors import ConfigError, DataError, ResourceError
from deeplab_jax.train import main

MIB = 2**20

TINY = ("model.width=8", "model.head_channels=16", "model.aux_channels=16",
        "model.low_level_channels=4", "model.num_classes=4", "data.crop_size=64,64",
        "data.resize_base=97,65", "train.batch_size=4", "train.epochs=2")  # fmt: skip


def change(config, *changes):
    return apply_overrides(config, [f"--config.{text}" for text in changes])


@pytest.fixture
def tiny(make_tree):
    """A narrow network over 12 drawn images."""
    return change(get_config("folder", 18, 16), *TINY, f"data.root={make_tree('folder')}")


@pytest.fixture
def no_compilers(monkeypatch):
    monkeypatch.setattr(hardware, "has_compiler", lambda chosen: False)


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.process("the command in a process of its own; in the first tier it runs in this one")
def test_the_command_writes_nothing_and_tells_all(repository, tmp_path, tiny):
    recipe = tmp_path / "tiny.py"
    recipe.write_text(
        "from deeplab_jax import config\n"
        "def get_config():\n"
        "    return config.get_config('folder', 18, 16)\n"
    )
    data = Path(tiny.data.root)
    before = tree(tmp_path), tree(data)
    changes = [f"--config.{change}" for change in (*TINY, f"data.root={tiny.data.root}")]
    command = [sys.executable, "-m", "deeplab_jax.train", "--config", str(recipe), "--dry-run",
               "--hardware=cpu:2", "--workdir", str(tmp_path / "runs/tiny"), *changes]  # fmt: skip
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(repository)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    got = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert got.returncode == 0, got.stderr
    assert (tree(tmp_path), tree(data)) == before
    assert len(got.stdout.splitlines()) <= 45
    for text in ("the compiler's own figures", "all-reduce", "mesh 2 (batch) x 1 (rows): each holds"
                 " 2", "steps                 6 = 2 epochs of 3", "0.01, ",
                 "at 0, 25, 50, 75, 100 %", "ignored "):  # fmt: skip
        assert text in got.stdout, got.stdout


def test_data_that_are_elsewhere_are_a_warning(tiny, tmp_path, no_compilers, capsys):
    tiny = change(tiny, f"data.root={tmp_path / 'nowhere'}")
    gather.dry_run(tiny, str(tmp_path / "run"), "v5e:2x2")  # the data are with the hardware
    text = capsys.readouterr().out
    assert f"warning: {tmp_path / 'nowhere'}: there is no such folder of data, on this ma" in text
    assert "our estimate, within a factor of 1.5" in text
    assert "not known: no data" in text
    assert "fits" in text


def test_a_best_class_that_is_not_there_is_told(tiny, tmp_path):
    inputs = gather.find_inputs(change(tiny, "checkpoint.best=iou/clas_1"), tmp_path)
    assert ["did you mean iou/class_1?" in str(error) for error in inputs.errors] == [True]


def test_a_table_row_has_its_published_length_without_data(no_compilers, tmp_path):
    config = change(get_config("ade20k", 18, 16), f"data.root={tmp_path}", "data.crop_size=64,64")
    facts = gather.gather(config, str(tmp_path / "run"), "h200:8")
    assert facts.inputs.plan.total == 164190
    assert [type(error) for error in facts.inputs.errors] == [DataError, DataError, ConfigError]
    assert "as published" in "\n".join(text_lib.render(facts))


def test_what_does_not_fit_comes_first_and_names_what_helps(tiny, tmp_path, no_compilers, capsys):
    tiny = change(tiny, f"data.root={tmp_path}", "data.crop_size=16384,16384")
    fix = r"dtype=bfloat16, .*remat=1,2,3,4, .*gradient_accumulation=2 \(.*\), more devices, or"
    fix += " .*spatial=2"
    with pytest.raises(ResourceError, match=fix) as caught:
        gather.dry_run(tiny, str(tmp_path / "run"), "v5e:2x2")
    assert caught.value.exit_code == 5
    assert f"also: {tmp_path}" in capsys.readouterr().out


def test_a_disk_that_is_too_small_is_an_error(tiny, tmp_path, no_compilers, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match="make room"):
        gather.dry_run(tiny, str(tmp_path / "run"), "h200")


@pytest.mark.parametrize(
    ("name", "message"),
    [("v5e:2x4", "4 does not divide over 8 devices"), ("v5e:3x3", "is no known hardware")],
)
def test_devices_that_cannot_be_used_are_refused_as_in_training(tiny, tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        gather.gather(tiny, str(tmp_path / "run"), name)


@pytest.mark.process("compiles and runs a step; the first tier has the one without memory")
def test_a_short_step_is_measured_on_the_devices_at_hand(tiny, tmp_path, compile_quickly):
    facts = gather.gather(tiny, str(tmp_path / "run"), None)
    assert facts.step_time.low == facts.step_time.high > 0
    text = "\n".join(text_lib.render(facts))
    assert "(measured here, the median of 3)" in text
    assert "for 6 steps, without evaluations" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.process("compiles a step; the first tier has the one without memory")
def test_a_long_step_is_guessed(tiny, tmp_path, compile_quickly, monkeypatch):
    monkeypatch.setattr(gather.hours, "MAX_SECONDS", 0.0)
    assert gather.gather(tiny, str(tmp_path / "run"), None).step_time.basis.startswith("a guess")


@pytest.mark.process("compiles a step; the first tier tells a step's time")
def test_a_measurement_that_runs_out_of_memory_leaves_the_guess(
    tiny, tmp_path, compile_quickly, monkeypatch
):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(gather.hours, "measure", fail)
    facts = gather.gather(tiny, str(tmp_path / "run"), None)
    assert facts.step_time.basis.startswith("a guess")
    assert "a step tried here ran out of memory" in facts.inputs.warnings[-1]


def test_hardware_is_for_a_dry_run(tmp_path):
    with pytest.raises(ConfigError, match="add --dry-run"):
        main(["--config", "x.py", "--hardware", "h200"])


def test_a_dry_run_has_no_other_processes(repository):
    recipe = str(repository / "configs/voc_r50_os16.py")
    with pytest.raises(ConfigError, match="name the devices of all hosts with --hardware"):
        main(["--config", recipe, "--dry-run", "--num-processes", "2"])


def test_samples_that_the_run_left_out_are_left_out(tiny, tmp_path):
    tiny = change(tiny, "data.max_bad_samples=1")
    assert gather.find_inputs(tiny, tmp_path).num_samples == 12
    (tmp_path / "bad_samples.txt").write_text("003\tis cut\n")
    assert gather.find_inputs(tiny, tmp_path).num_samples == 11


def test_unreadable_samples_are_errors_unless_they_may_be_left_out(tiny, tmp_path):
    for path in (Path(tiny.data.root) / "images/train").iterdir():
        path.write_bytes(b"no picture")
    assert gather.find_inputs(tiny, tmp_path / "run").errors
    tiny = change(tiny, "data.max_bad_samples=12")
    inputs = gather.find_inputs(tiny, tmp_path / "run")
    assert not inputs.errors
    assert "max_bad_samples may leave it out" in inputs.warnings[-1]


def test_the_first_image_is_told_by_the_shares_of_its_classes():
    label = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [255] * 4, [255] * 4], np.uint8)
    assert text_lib.class_shares(label, ["sky", "cat"]) == "ignored 50 %, sky 25 %, cat 25 %"


@pytest.mark.parity("traces the step for several meshes; one estimate is in the first tier")
def test_the_estimate_divides_over_batch_and_rows(tiny):
    def of(name, *changes):
        return estimate_lib.estimate(change(tiny, *changes), hardware.parse_hardware(name))

    one, two, split = of("h200"), of("h200:2"), of("h200:2", "mesh.spatial=2")
    kernels = estimate_lib.kept_bytes(tiny, "gpu").kernels
    assert two.temporaries - kernels == pytest.approx((one.temporaries - kernels) / 2, abs=1)
    assert split.temporaries == two.temporaries
    assert one.collectives == {}
    assert set(two.collectives) == {"all-reduce"}
    assert set(split.collectives) == {"all-reduce", "collective-permute"}
    assert of("h200", "model.remat=1,2,3,4").temporaries < one.temporaries


@pytest.mark.parametrize(
    ("kind", "dtype", "maps", "pictures", "kernels"),
    [("tpu", "bfloat16", 654, 604, 88), ("gpu", "float32", 1305, 604, 69)],
)
@pytest.mark.slow("traces ResNet-50 at full size")
def test_what_the_estimate_is_made_from(kind, dtype, maps, pictures, kernels):
    config = change(get_config("ade20k", 50, 16), f"model.dtype={dtype}")
    kept = estimate_lib.kept_bytes(config, kind)
    assert [round(n / MIB) for n in (kept.maps, kept.pictures, kept.kernels)] == [
        maps, pictures, kernels]  # fmt: skip


@pytest.mark.slow("compiles ResNet-50 for a GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_estimate_is_near_the_compilers_figure(dtype, compile_run):
    config = change(get_config("voc", 50, 16), f"model.dtype={dtype}")
    theirs = compile_run(config, "h200:8")
    ours = estimate_lib.estimate(config, hardware.parse_hardware("h200:8"))
    assert 1 / 1.5 < ours.temporaries / theirs.temporaries < 1.5
    reduced, wanted = (got.collectives["all-reduce"][1] for got in (ours, theirs))
    assert 1 / 1.5 < reduced / wanted < 1.5


def test_frozen_modules_cost_no_gradient_and_a_forward_pass_alone(tiny):
    frozen = change(tiny, "train.freeze=backbone.stem,backbone.layer1,backbone.layer2")
    kept, less = (estimate_lib.kept_bytes(c, "gpu") for c in (tiny, frozen))
    assert less.maps < 0.6 * kept.maps  # large maps are those of the first layers
    _, (learning, still, *_) = estimate_lib.traced_loss(frozen, "gpu")
    assert {*still["backbone"]} == {"stem", "layer1_0", "layer1_1", "layer2_0", "layer2_1"}
    assert not {*still["backbone"]} & {*learning["backbone"]}
    macs = flops.count_macs(tiny)
    fewer = 2 * tiny.train.batch_size * (macs["stem"] + macs["layer1"] + macs["layer2"])
    assert flops.step_macs(tiny, macs) - flops.step_macs(frozen, macs) == fewer
    # Behind a layer that learns, the gradient passes through.
    later = change(tiny, "train.freeze=backbone.layer4")
    fewer = tiny.train.batch_size * macs["layer4"]
    assert flops.step_macs(tiny, macs) - flops.step_macs(later, macs) == fewer
    numbers = flops.count_parameters(tiny)
    assert flops.count_learning(later) == sum(numbers.values()) - numbers["layer4"]


def test_schedule_is_drawn_and_what_learns_is_told(tiny, tmp_path, no_compilers):
    changes = "schedule=cosine", "warmup_steps=2", "ema_half_life=5", "freeze=backbone.stem"
    tiny = change(tiny, *(f"train.{text}" for text in changes), "train.optimizer=adamw")
    lines = text_lib.render(gather.gather(tiny, str(tmp_path / "run"), "h200"))
    text = "\n".join(lines)
    assert "(frozen: backbone.stem)" in text
    assert " + moments " in text
    assert " + average " in text
    first = next(k for k, line in enumerate(lines) if line.startswith("learning rate"))
    assert lines[first].endswith("% (cosine after 2 steps of warm-up)")
    assert lines[first + 1].startswith("                0.01 |")
    assert lines[first + 5].startswith("                   0 |")
    assert sum(line.count("*") for line in lines[first + 1 : first + 6]) == 49


def test_plot_has_a_mark_a_column_from_zero_to_the_largest():
    assert [*text_lib.plot([4.0, 3.0, 2.0, 1.0, 0.0])] == [
        "                   4 |*",
        "                     | *",
        "                     |  *",
        "                     |   *",
        "                   0 |    *",
    ]
