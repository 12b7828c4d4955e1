import importlib.util
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import deeplab_jax
from deeplab_jax.errors import CheckpointError
from deeplab_jax.inference import engine
from deeplab_jax.inference.exported import standalone
from deeplab_jax.inference.memory import TooLargeError
from deeplab_jax.utils import steps

pytestmark = pytest.mark.usefixtures("compile_quickly")


def export(call, saved_run, output, *flags, formats="safetensors"):
    words = ["export", "--checkpoint", saved_run.path, "--format", formats, "--output", output]
    return call(*words, *flags)


def test_folder_holds_the_proof_of_its_models(saved_run, exports):
    names = {path.relative_to(exports.labels).as_posix() for path in exports.labels.rglob("*")}
    assert names == {
        "SHA256SUMS", "export.json", "labels.json", "model.onnx", "model.safetensors",
        "model.stablehlo", "model_card.md", "sample", "sample/confidence.npy", "sample/input.png",
        "sample/labels.npy", "sample/labels.png", "sample/logits.npy", "verify.py",
    }  # fmt: skip
    content = json.loads((exports.labels / "export.json").read_text())
    assert content["step"] == 3  # the best
    assert content["files"]["onnx"] == {"opset": 17, "ir_version": 8}
    assert content["files"]["stablehlo"]["compatibility"].startswith("JAX promises")
    assert content["config"]["data"]["root"] == "data"  # nobody's place
    labels = json.loads((exports.labels / "labels.json").read_text())
    assert [label["name"] for label in labels["classes"]] == list(saved_run.validation.class_names)
    assert labels["ignore"] == 255
    assert str(saved_run.root) not in (exports.labels / "export.json").read_text()
    image, _ = saved_run.validation.read(0)
    np.testing.assert_array_equal(standalone.read_png(exports.labels / "sample/input.png"), image)
    assert steps.EXPORT == standalone.DESCRIPTION


def test_card_names_what_is_not_known(exports):
    card = (exports.labels / "model_card.md").read_text()
    assert "Licence of the code, `verify.py` included: Apache-2.0." in card
    assert "Licence of the data: not recorded" in card
    assert "not evaluated" in card
    assert "Mean IoU while it trained, on split `val`:\n90.00 %." in card
    assert "| `eval.resize_base` | (empty) | 80,64 |" in card
    assert "fitted into 80 x 64 pixels" in card
    assert not re.search(r"TODO|TBD|FIXME|\bNone\b|\{|\}|\.\.\.|<|lorem", card)


def test_weights_alone_say_what_their_network_takes(call, saved_run, tmp_path):
    folder = tmp_path / "st"
    assert export(call, saved_run, folder).code == 0
    content = json.loads((folder / "export.json").read_text())
    details = content["files"]["safetensors"]
    assert (content["output_kind"], content["outputs"]) == ("weights", [])
    assert content["input"] == details["input"]
    assert "(value - mean) / std" in details["input"]
    assert details["mean"] == [123.675, 116.28, 103.53]
    assert details["std"] == [58.395, 57.12, 57.375]
    assert (details["output_stride"], details["atrous_rates"]) == (16, [1, 2, 3])
    card = (folder / "model_card.md").read_text()
    assert "There is no network in this folder, only its weights" in card
    assert "output stride 16, atrous rates 1, 2, 3, multi-grid" in card
    assert "with mean 123.675, 116.28, 103.53 and std 58.395, 57.12, 57.375 of R, G, B" in card
    assert "uint8" not in card
    assert not re.search(r"TODO|\bNone\b|\{|\}|\.\.\.|<", card)


def test_the_command_for_weights_alone_gives_the_same_labels(
    call, saved_run, tmp_path, monkeypatch
):
    folder = tmp_path / "st"
    assert export(call, saved_run, folder).code == 0
    with pytest.raises(CheckpointError) as error:
        deeplab_jax.load(folder)
    command = error.value.fix.partition("make a checkpoint of it: ")[2]
    assert "--output-stride 16 --atrous-rates 1,2,3" in command
    monkeypatch.chdir(tmp_path)
    assert call(*shlex.split(command)[1:]).code == 0
    got, wanted = deeplab_jax.load("weights/st"), deeplab_jax.load(saved_run.path)
    assert got.class_names == wanted.class_names
    np.testing.assert_array_equal(got.palette, wanted.palette)
    for image in saved_run.images:
        np.testing.assert_array_equal(got(image).labels, wanted(image).labels)


@pytest.mark.parity("evaluates, and exports twice more")
def test_card_shows_the_evaluation_of_the_step(call, saved_run, tmp_path):
    numbers = saved_run.path / "evaluation.json"
    assert call("evaluate", "--checkpoint", saved_run.path, "--step", "7").code == 0
    try:
        found = json.loads(numbers.read_text())
        for step in ("7", "3"):
            assert export(call, saved_run, tmp_path / step, "--step", step).code == 0
    finally:
        numbers.unlink()
        (saved_run.path / "report.html").unlink()
    card = (tmp_path / "7/model_card.md").read_text()
    assert f"Mean IoU {100 * found['mean_iou']:.2f} %" in card
    for name, iou in zip(found["class_names"], found["iou"], strict=True):
        assert f"| {name} | {100 * iou:.2f} % |" in card
    assert "95 % interval" in card
    assert "\nAn interval from 3 images is too narrow: evaluate 50 or more.\n" in card
    assert "not evaluated" in (tmp_path / "3/model_card.md").read_text()


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (["--format", "onx"], "give some of onnx,stablehlo,safetensors"),
        (["--format", "stablehlo"], "such as --size 360x480"),
        (["--format", "stablehlo", "--size", "65"], "such as --size 360x480"),
        (["--format", "stablehlo", "--size", "65x97", "--platforms", "gpu"], "cpu,cuda,rocm,tpu"),
        (["--format", "onnx", "--size", "65x97"], "add stablehlo to --format"),
        (["--format", "onnx", "--dialect", "mmsegmentation"], "is for safetensors"),
        (["--format", "safetensors", "--dialect", "mmseg"], "did you mean mmsegmentation?"),
        (
            ["--format", "safetensors", "--dialect", "x"],
            "use one of sssegmentation, mmsegmentation\n",
        ),
        (["--format", "safetensors", "--output-kind", "labels"], "is for onnx and stablehlo"),
        (["--format", "stablehlo", "--size", "65x97", "--platforms", ""], "--platforms: is empty"),
        (["--format", "stablehlo", "--size", "999999x9"], "each from 1 to 99999 pixels"),
        (["--format", "onnx", "--config.eval.flip=true"], "adding --config.eval.mode=whole"),
        (["--format", "onnx", "--config.eval.scales=0.5,1"], "--config.eval.scales=1"),
        (["--format", "onnx", "--step", "9"], "use one of: 3, 7, latest, best"),
        (["--format", "onnx", "--output", ""], "give a path"),
        (["--format", "onnx", "--output", "."], "give a path"),
        (["--format", "onnx", "--output", "gs://bucket/x"], "give a path"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_advice(call, saved_run, tmp_path, flags, advice):
    output = [] if "--output" in flags else ["--output", tmp_path / "out"]
    got = call("export", "--checkpoint", saved_run.path, *flags, *output)
    assert (got.code in (2, 4), got.err.count("\n")) == (True, 1), got.err
    assert advice in got.err
    assert not (tmp_path / "out").exists()


def test_a_size_beyond_memory_is_not_told_to_use_windows(call, saved_run, tmp_path, monkeypatch):
    def refuse(*_):
        raise TooLargeError("image of 9 x 9 pixels", "needs 9 GiB", "use windows")

    monkeypatch.setattr(engine, "check_memory", refuse)
    got = export(call, saved_run, tmp_path / "x", "--size", "9x9", formats="stablehlo")
    assert (got.code, "needs 9 GiB - give a smaller --size" in got.err) == (5, True), got.err


def test_only_an_export_is_replaced_and_only_with_force(call, saved_run, exports, copy_of):
    folder = copy_of(exports.logits)
    assert "replace it with --force" in export(call, saved_run, folder).err
    (folder / "mine.txt").write_text("x")
    got = export(call, saved_run, folder, "--force")
    assert "holds mine.txt, which the export there did not write" in got.err
    (folder / "mine.txt").unlink()
    assert export(call, saved_run, folder, "--force").code == 0
    assert not (folder / "model.onnx").exists()
    assert standalone.changed_files(folder) == []
    (folder / "export.json").unlink()
    assert "holds files that are no export's" in export(call, saved_run, folder, "--force").err
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.process("runs what was exported in an interpreter of its own")
def test_folder_verifies_itself_without_this_package(exports, copy_of):
    folder = copy_of(exports.logits)
    code = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('deeplab_jax', 'jax', 'PIL', 'cv2', 'onnx'))\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", code, folder / "verify.py"]
    got = subprocess.run(command, capture_output=True, text=True)
    assert (got.returncode, got.stderr) == (0, "")
    assert "model.onnx: good: largest logit difference" in got.stdout


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def sign(folder):
    """Writes SHA256SUMS anew, as somebody who hides a change would."""
    names = [line.partition("  ")[2] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    present = [name for name in names if (folder / name).exists()]
    lines = [f"{standalone.digest(folder / name)}  {name}\n" for name in present]
    (folder / "SHA256SUMS").write_text("".join(lines))


TAMPERED = {
    "a weight": ("model.onnx was changed", lambda f: flip_byte(f / "model.onnx")),
    "the sample": ("sample/input.png was changed", lambda f: flip_byte(f / "sample/input.png")),
    "the card": (
        "model_card.md was changed",
        lambda f: (f / "model_card.md").write_text("Mean IoU 99 %"),
    ),
    "the sums": ("SHA256SUMS is missing", lambda f: (f / "SHA256SUMS").unlink()),
    "a file missing": ("labels.json is missing", lambda f: (f / "labels.json").unlink()),
    "a file more": ("extra.bin was added", lambda f: (f / "extra.bin").write_bytes(b"x")),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_change_is_noticed_by_the_verb_and_by_the_folder_itself(
    call, exports, copy_of, capsys, case
):
    phrase, change = TAMPERED[case]
    folder = copy_of(exports.logits)
    change(folder)
    got = call("verify", folder)
    assert (got.code, phrase in got.err, got.err.count("\n")) == (4, True, 1)
    assert standalone.main(folder) == 4
    assert phrase in capsys.readouterr().out


def test_weights_changed_with_their_sums_do_not_give_the_sample(call, exports, copy_of, capsys):
    onnx = pytest.importorskip("onnx")
    folder = copy_of(exports.logits)
    model = onnx.load(folder / "model.onnx")
    bias = next(x for x in model.graph.initializer if x.name == "classifier/bias")
    changed = onnx.numpy_helper.to_array(bias) + np.float32(0.5) * np.arange(4, dtype=np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
    onnx.save(model, folder / "model.onnx")
    sign(folder)
    got = call("verify", folder)
    assert (got.code, "model.onnx, sample, logits" in got.err) == (4, True)
    assert standalone.main(folder) == 4
    assert "model.onnx: DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["nan", "shape"])
def test_outputs_that_are_no_numbers_or_of_another_shape_are_faults(
    call, saved_run, exports, copy_of, case, tmp_path
):
    onnx = pytest.importorskip("onnx")
    folder, found = copy_of(exports.logits), tmp_path / "found.json"
    model = onnx.load(folder / "model.onnx")
    if case == "nan":
        bias = next(x for x in model.graph.initializer if x.name == "classifier/bias")
        changed = onnx.numpy_helper.to_array(bias) * np.array([1, 1, 1, np.nan], np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
    else:
        node = next(node for node in model.graph.node if "logits" in node.output)
        node.output[:] = ["turned" if name == "logits" else name for name in node.output]
        turn = onnx.helper.make_node("Transpose", ["turned"], ["logits"], perm=[0, 2, 1, 3])
        model.graph.node.append(turn)
    onnx.save(model, folder / "model.onnx")
    sign(folder)
    flags = ["--data", saved_run.root, "--checkpoint", saved_run.path, "--json", found]
    got = call("verify", folder, *flags)
    assert (got.code, got.err.count("\n")) == (4, 1), got.err
    assert "model.onnx, sample, logits" in got.err

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    results = json.loads(found.read_text(), parse_constant=refuse)["models"]["model.onnx"]
    assert results["sample"]["logits"] is None
    if case == "nan":
        assert "images of folder/val, confidence, logits, pixels" in got.err
        assert results["data"]["logits"] is None
    else:
        assert "data" not in results
    assert standalone.main(folder) == 4


@pytest.mark.parametrize("name", ["model.onnx", "model.stablehlo"])
def test_a_file_that_the_runtime_cannot_parse_is_not_as_exported(
    call, exports, copy_of, capsys, name
):
    folder = copy_of(exports.labels)
    for other in {"model.onnx", "model.stablehlo"} - {name}:  # here alone it is run
        (folder / other).unlink()
    description = json.loads((folder / "export.json").read_text())
    description["files"] = {k: v for k, v in description["files"].items() if k in name}
    (folder / "export.json").write_text(json.dumps(description))
    (folder / name).write_bytes(b"of no version")
    sign(folder)
    got = call("verify", folder)
    assert (got.code, got.err.count("\n")) == (4, 1), got.err
    assert f"{name}: is not as exported: it cannot be parsed (" in got.err
    assert standalone.main(folder) == 4
    assert f"{name}: NOT as exported: cannot be parsed (" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["export.json", "sample/logits.npy", "sample/input.png"])
@pytest.mark.parametrize("content", [b"", b"{", b'{"files": []}'])
def test_a_part_changed_with_its_sums_is_one_line(call, exports, copy_of, capsys, name, content):
    folder = copy_of(exports.logits)
    (folder / name).write_bytes(content)
    sign(folder)
    got = call("verify", folder)
    assert (got.code, got.err.count("\n")) == (4, 1), got.err
    assert standalone.main(folder) == 4
    assert re.search(r"NOT as exported: .* cannot be read \(", capsys.readouterr().out)


def test_a_model_for_another_device_is_not_verified_and_the_others_are(
    call, saved_run, copy_of, exports, tmp_path, capsys
):
    folder, found = copy_of(exports.labels), tmp_path / "found.json"
    got = export(
        call, saved_run, folder, "--force", "--size", "33x41", "--platforms", "cuda",
        formats="onnx,stablehlo",
    )  # fmt: skip
    assert "model.stablehlo: not run here: is for cuda, and JAX runs on cpu here" in got.out
    got = call("verify", folder, "--json", found)
    assert (got.code, got.err) == (
        5,
        f"error: {folder}: was not verified whole: model.stablehlo is for cuda, and JAX runs on cpu"
        " here - run deeplab verify where JAX has that device, or export again with --platforms"
        " cpu\n",
    )
    assert "model.onnx, sample: largest logit difference" in got.out
    assert got.out.count("model.stablehlo") == 1
    assert "verified" not in got.out.splitlines()
    results = json.loads(found.read_text())
    assert not results["is_within"]
    assert results["models"]["model.onnx"]["sample"]["pixels"] == 0
    text = "is for cuda, and JAX runs on cpu here"
    assert results["models"]["model.stablehlo"] == {"not_run": text}
    assert standalone.main(folder) == 5
    out = capsys.readouterr().out
    assert "model.onnx: good" in out
    assert "model.stablehlo: not run (" in out


def test_a_model_of_no_export_is_refused_by_both(call, exports, copy_of, capsys):
    onnx = pytest.importorskip("onnx")
    folder = copy_of(exports.logits)
    model = onnx.load(folder / "model.onnx")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["logits"], ["sum"], keepdims=0))
    model.graph.output[0].name = "sum"
    onnx.save(model, folder / "model.onnx")
    sign(folder)
    got = call("verify", folder)
    assert (got.code, got.err.count("\n")) == (4, 1)
    assert "model.onnx: is not as exported: it gives sum tensor(float) of 0 axes, not" in got.err
    assert standalone.main(folder) == 4
    assert "model.onnx: NOT as exported: gives sum" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "name"), [("logits", "onnx"), ("labels", "safetensors")])
def test_weights_that_cannot_be_read_are_one_line(call, saved_run, exports, copy_of, kind, name):
    folder = copy_of(getattr(exports, kind))
    (folder / f"model.{name}").write_bytes(b"of another version")
    sign(folder)
    got = call("verify", folder, "--data", saved_run.root)
    assert (got.code, got.err.count("\n")) == (4, 1), got.err
    words = "is not as exported: it " if name == "onnx" else "does not hold the weights of its"
    assert f"model.{name}: {words}" in got.err


def test_every_model_gives_what_the_network_gives(call, saved_run, exports, tmp_path, capsys):
    found = tmp_path / "found.json"
    got = call("verify", exports.labels, "--data", saved_run.root, "--json", found)
    assert (got.code, got.out.splitlines()[-1]) == (0, "verified"), got.err
    results = json.loads(found.read_text())
    assert results["is_within"]
    for name, number in (("model.onnx", 3), ("model.stablehlo", 2)):
        data = results["models"][name]["data"]
        assert data["data"] == f"{number} images of folder/val"
        assert (data["pixels_apart"], data["pixels"]) == (0, 0)  # a count, a share
        assert data["num_pixels"] > 10_000
        assert data["mean_iou"] == data["mean_iou_ours"]
    assert results["models"]["model.onnx"]["data"]["logits"] < 1e-5
    assert results["models"]["model.safetensors"]["sample"]["logits"] < 1e-6
    assert "left out: 1 images, each of which has another size" in got.out
    assert standalone.main(exports.labels) == 0
    assert capsys.readouterr().out.count("good") == 2


@pytest.mark.parity("compiles a network twice more")
def test_network_is_the_checkpoint_or_the_weights_in_the_file(call, saved_run, exports):
    for flags, source in (
        ([], "the weights in model.onnx"),
        (["--checkpoint", saved_run.path], ""),
    ):
        got = call("verify", exports.logits, "--data", saved_run.root, *flags)
        assert (got.code, got.err) == (0, "")
        assert f"ours: deeplab_jax with {source or saved_run.path}" in got.out
    assert ", step 3)" in got.out


def test_missing_runtime_is_told_in_one_line(call, exports, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    got = call("verify", exports.logits)
    reason = "model.onnx cannot run (onnxruntime: is not installed)"
    error = f"error: {exports.logits}: was not verified whole: {reason}"
    assert (got.code, got.err) == (5, f"{error} - pip install 'deeplab_jax[onnx]'\n")


def test_a_program_cut_inside_is_not_as_exported(exports):
    description = json.loads((exports.labels / "export.json").read_text())
    version, error = description["files"]["stablehlo"]["jax"], ValueError("Failed to deserialize")
    assert standalone.is_damaged_program(error, version)
    assert not standalone.is_damaged_program(error, "0.1")  # may be a matter of versions
    assert not standalone.is_damaged_program(ValueError("no memory"), version)


@pytest.mark.parametrize("place", ["model_card.md", "more.json", "sample/../more.json"])
def test_numbers_do_not_go_into_the_folder(call, exports, copy_of, place):
    folder = copy_of(exports.logits)
    got = call("verify", folder, "--json", folder / place)
    assert (got.code, got.out, "name a file outside" in got.err) == (2, "", True), got.err
    assert standalone.changed_files(folder) == []


def test_what_is_refused_before_anything_runs(call, exports, tmp_path):
    for flags, text in (
        (["--json", tmp_path / "no/x.json"], f"--json {tmp_path}/no/x.json: there is no folder"),
        (["--json", ""], "--json: is empty"),
        (["--data", ""], "--data: is empty"),
        (["--checkpoint", ""], "--checkpoint: is empty"),
    ):
        got = call("verify", exports.logits, *flags)
        assert (got.code, got.out, got.err.count("\n")) == (2, "", 1)
        assert got.err.startswith(f"error: {text}")
    assert call("verify", "").err.startswith("error: DIR: is empty")
    got = call("verify", exports.logits, "--data", tmp_path / "nowhere")
    line = f"error: {tmp_path}/nowhere: there is no such folder of data - name the folder of the"
    assert (got.code, got.out, got.err) == (3, "", f"{line} recipe's data: --data ROOT\n")


def test_other_folders_and_flags_are_refused(call, saved_run, exports, tmp_path):
    assert "give a folder that deeplab export wrote" in call("verify", saved_run.path).err
    assert "is no folder" in call("verify", tmp_path / "x").err
    assert "--data ROOT" in call("verify", exports.logits, "--checkpoint", saved_run.path).err
    got = call("evaluate", "--checkpoint", exports.logits)
    assert (got.code, "measure it with deeplab verify" in got.err) == (4, True)


def test_confidence_may_be_another_in_few_pixels_and_a_number_in_all():
    labels, wanted = np.zeros((40, 50), np.uint8), np.full((40, 50), 0.5, np.float32)
    for value, share in ((0.5001, 0), (0.6, 1 / 2000), (np.nan, 1 / 2000)):
        got = wanted.copy()
        got[3, 4] = value
        found = standalone.differences(
            {"labels": labels, "confidence": got}, {"labels": labels, "confidence": wanted}
        )
        assert found == {"pixels": 0, "confidence": pytest.approx(share)}
    assert standalone.too_large({"confidence": np.nan}, {"confidence": 1e-3}) == ["confidence"]
