import json

import jax
import pytest

from convert import keymap
from deeplab_jax.benchmark import rivals
from deeplab_jax.benchmark.rows import Row, choose
from deeplab_jax.benchmark.run import COMPILED, EAGER, OURS, Bench
from deeplab_jax.errors import ConfigError

TINY = ("model.atrous_rates=1,2,3", "data.crop_size=64,64", "train.batch_size=4",
        "data.root=nowhere", "eval.resize_base=97,65")  # fmt: skip
SIDE = {"seconds", "median", "low", "high", "images_per_second", "settings"}
pytestmark = pytest.mark.usefixtures("compile_quickly")


def to_tensors(variables, depth):
    return keymap.to_tensors(variables, {}, depth)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the verb sets it


@pytest.fixture
def bench(narrow_config):
    """Returns bench(*cases, change=..., **options) -> (Bench, its results) of a tiny network."""

    def bench(*cases, change=to_tensors, **options):
        made = Bench(change, cases, is_quick=True, devices=jax.devices()[:1], **options)
        row = Row(narrow_config(*TINY), (64, 96))
        *_, results = made.results([row], "deeplab bench")
        return made, json.loads(json.dumps(results))

    return bench


def check_sides(case, names):
    assert list(case["sides"]) == names
    for side in case["sides"].values():
        assert side.keys() >= SIDE
        assert len(side["seconds"]) == case["rounds"] == 3
        assert side["low"] <= side["median"] <= side["high"]
        rate = case["batch_size"] / side["median"]
        assert side["images_per_second"] == pytest.approx(rate)
    assert list(case["ratios"]) == names[1:]
    assert case["others"] is None or 0 <= case["others"] <= 1


@pytest.mark.torch
def test_a_network_that_differs_is_not_timed(bench):
    pytest.importorskip("torch")

    def change(variables, depth):
        tensors = to_tensors(variables, depth)
        key = "aspp_net.bottleneck.0.weight"
        return tensors | {key: tensors[key] * 1.1}

    made, results = bench("inference", change=change)
    [case] = results["cases"]
    check_sides(case, [OURS])
    assert case["equal"]["logits"] > 1e-3
    assert made.unequal[0] in results["notes"]
    assert made.unequal[0].startswith("inference of folder_r18_os16: PyTorch's differ, logits by ")


@pytest.mark.torch
@pytest.mark.process("compiles a training step, and times PyTorch's beside it")
def test_all_cases_and_what_the_page_shows(bench):
    pytest.importorskip("torch")
    from deeplab_jax.benchmark import text

    made, results = bench("train", "inference", "end-to-end", "input")
    assert [case["case"] for case in results["cases"]] == [
        "train", "inference", "end-to-end", "input"
    ]  # fmt: skip
    train, inference, whole, reading = results["cases"]
    check_sides(train, [OURS, EAGER])
    check_sides(inference, [OURS, EAGER])
    assert (inference["batch_size"], inference["size"]) == (1, [64, 96])
    assert 0 < inference["equal"]["logits"] < 1e-5
    ours = inference["sides"][OURS]
    speed = inference["flop_per_image"] * ours["images_per_second"]
    ceiling = results["ceilings"]["float32"]["flops_per_second"]
    assert ours["share_of_ceiling"] == pytest.approx(speed / ceiling)
    assert ours["compile"] in ("cold", "cached")
    check_sides(whole, [OURS, EAGER])
    check_sides(reading, [OURS])
    assert train["equal"].keys() == {"logits", "loss"}
    assert whole["equal"]["labels"] < 0.01
    assert reading["need"] == train["sides"][OURS]["images_per_second"]
    assert reading["source"] == "drawn pictures"
    assert COMPILED not in train["sides"]
    assert [note for note in results["notes"] if "other programs" not in note] == []
    assert made.unequal == []
    lines = text.render(results)
    assert len([line for line in lines if line.startswith("| ")]) == 2 + 7
    assert any(line.startswith("- folder_r18_os16: reading drawn pictures") for line in lines)


@pytest.mark.parametrize("last", ["sign", "other"])
def test_transforms_are_timed_but_those_of_classes_that_drawn_pictures_lack(narrow_config, last):
    names = ",".join([*(f"c{k}" for k in range(3)), last])
    changes = f"data.class_names={names}", "model.num_classes=4"
    changes += ('data.transforms=scale,crop,copy_paste(classes=["sign"]),vertical_flip',)
    row = Row(narrow_config(*TINY, *changes), (64, 96))
    *_, results = Bench(to_tensors, ["input"], is_quick=True, is_alone=True).results([row], "")
    [case] = results["cases"]
    check_sides(case, [OURS])
    told = "drawn pictures, without copy_paste of the class sign, which they do not have"
    assert case["source"] == ("drawn pictures" if last == "sign" else told)
    assert (f"folder_r18_os16, input: {told}" in results["notes"]) == (last == "other")


def test_no_torch_and_memory_that_runs_out_are_one_line_each(bench, monkeypatch):
    from deeplab_jax.benchmark import ours, rivals

    def exhaust(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")

    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(ours, "Inference", exhaust)
    _, results = bench("inference", "input")
    first, reading = results["cases"]
    assert first["error"].startswith("out of memory (RESOURCE_EXHAUSTED")
    assert "sides" not in first
    check_sides(reading, [OURS])
    assert results["notes"] == [
        "no comparison with PyTorch: torch is not installed",
        f"inference of folder_r18_os16: {first['error']}",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, [], "cpu", True), [("camvid_r18_os16", 2, (256, 256), "float32")]),
        (
            (None, ["--config.data.crop_size=64,96"], "gpu", True),
            [("ade20k_r50_os16", 16, (64, 96), "bfloat16")],
        ),
        (
            (None, [], "cpu", False),
            [
                ("voc_r50_os16", 2, (512, 512), "float32"),
                ("camvid_r18_os16", 4, (360, 480), "float32"),
                ("voc_r50_os8", 2, (512, 512), "float32"),
            ],
        ),
        (("voc_r50_os16", [], "tpu", True), [("voc_r50_os16", 16, (512, 512), "float32")]),
    ],
)
def test_rows_of_a_kind_of_device(arguments, expected):
    found = [
        (row.config.name, row.config.train.batch_size, row.size, row.config.model.dtype)
        for row in choose(*arguments)
    ]
    assert found == expected


def test_the_verb_writes_what_it_prints(call, tmp_path):
    out = tmp_path / "new"
    words = ["bench", "--quick", "--alone", "--only", "input", "--output", out]
    code, text, _ = call(*words)
    assert code == 0
    results = json.loads((out / "bench.json").read_text())
    assert results["command"] == f"deeplab {' '.join(map(str, words))}"
    assert results["is_quick"]
    assert text == (out / "bench.md").read_text() + f"results: {out}\n"
    assert "| input | camvid_r18_os16, R-18-D16, 2 x 256x256, float32 | deeplab_jax | " in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "train,trian"], "--only: 'trian' is no case - give some of train,inference,"),
        (["--only", ","], "--only: names no case"),
        (["--config", "voc_r50"], "name one, such as voc_r50"),
        (["--output", __file__], "is a file, not a folder - choose another --output"),
        (["--quikc"], "did you mean --quick?"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(call, words, told):
    code, out, err = call("bench", *words)
    assert (out, err.count("\n")) == ("", 1)
    assert code in (2, 5)
    assert told in err


def test_rows_refuse_what_a_recipe_cannot_be():
    with pytest.raises(ConfigError, match="batch_size"):
        choose("voc_r50_os16", ["--config.train.batch_size=3"], "cpu", False)


@pytest.mark.parametrize(("end", "expected"), [("interrupt", 130), ("unequal", 6), ("memory", 5)])
def test_what_was_done_is_shown_however_it_ends(call, tmp_path, monkeypatch, end, expected):
    true_results = Bench.results

    def results(self, rows, command):
        for found in true_results(self, rows, command):
            if end == "memory":
                found["cases"][0] = {**found["cases"][0], "error": "out of memory"}
            self.unequal += ["train of a"] * (end == "unequal")
            yield found
        if end == "interrupt":
            raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "results", results)
    words = ["bench", "--quick", "--alone", "--only", "input", "--output", tmp_path]
    code, out, err = call(*words)
    assert code == expected
    assert "| input | camvid_r18_os16" in out
    assert json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert err.strip().splitlines()[-1].startswith("interrupted" if expected == 130 else "error: ")


@pytest.mark.parametrize(
    "change",
    ["model.remat=1", "train.optimizer=adamw", "train.freeze=backbone", "train.clip_norm=1",
     "loss.dice=1"],
)  # fmt: skip
def test_a_recipe_that_pytorch_s_side_has_not_is_named(narrow_config, change):
    assert rivals.difference_of_recipe(narrow_config()) == ""
    found = rivals.difference_of_recipe(narrow_config(change))
    assert found
    assert f"config.{change}".startswith(found)
