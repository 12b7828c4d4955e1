"""Makes the files beside this one from the full golden values: python compact.py FOLDER.

FOLDER holds what running the reference's own code gave, in float64 (see README.md). Whole arrays
become samples, images RGB, ignored labels 255; numbers keep nine digits, float32's precision.
"""

import json
import sys
from pathlib import Path

import numpy as np
import recipe

TABLE = [f"r{depth}_d{os}_c{c}" for depth in (50, 101) for os in (8, 16) for c in (21, 150, 19)]
DIALECTS = ["mmseg_r18_d8_c19", "mmseg_r50_d8_c21", "mmseg_r101_d8_c150", "mmseg_r101_d16mg124_c19"]
BACKBONES = ["v1c_resnet50", "torchvision_resnet18", "torchvision_resnet50"]
TRAININGS = ["r50_d16_c21", "r50_d8_c21"]
_PROBED = ("65x97", "64x96")  # the cases whose inner stages are kept
_VALUES = 1024  # samples of an array


def build(folder):
    """Returns {file name: JSON text, or {key: array}} of every compact file."""
    forward_facts, forward_arrays = _forward(folder)
    inference = json.loads((folder / "inference.json").read_text())
    files = {
        "manifests.json": _lines(_manifests(folder)),
        "forward.json": _lines(forward_facts),
        "forward.npz": forward_arrays,
        "inference.json": _lines({case["case"]: case for case in inference}),
        "inference.npz": _inference(np.load(folder / "inference.npz")),
        "data.json": _lines(json.loads((folder / "data.json").read_text())),
        "data.npz": _data(np.load(folder / "data.npz")),
    }
    facts = {}
    for name in TRAININGS:
        facts[name], files[f"train_{name}.npz"] = _training(folder, name)
    return files | {"train.json": _lines(facts)}


def _lines(tree):
    """Returns JSON with one line per top-level key."""
    rows = (
        f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}"
        for key, value in tree.items()
    )
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _rounded(values):
    return [float(f"{value:.9g}") for value in values]


def _manifests(folder):
    """Keys, shapes and CRC-32s; of alike networks only what differs. Stride leaves no trace."""
    networks = {}
    for base, others in {
        "r50_d8_c21": ("r50_d8_c150", "r50_d8_c19"),
        "r101_d8_c21": ("r101_d8_c150", "r101_d8_c19"),
        "mmseg_r101_d8_c150": ("mmseg_r101_d16mg124_c19",),
        **dict.fromkeys([*DIALECTS[:2], *BACKBONES], ()),
    }.items():
        salt, rows = _manifest(folder, base)
        networks[recipe.without_stride(base)] = {"salt": salt, "entries": rows}
        for other in others:
            other_salt, other_rows = _manifest(folder, other)
            assert [row[0] for row in other_rows] == [row[0] for row in rows]
            changed = [new for new, old in zip(other_rows, rows, strict=True) if new != old]
            entry = {"salt": other_salt, "base": recipe.without_stride(base), "entries": changed}
            networks[recipe.without_stride(other)] = entry
    return networks


def _manifest(folder, name):
    where = folder if name.startswith("r") else folder / "dialects"
    tree = json.loads((where / f"manifest_{name}.json").read_text())
    return tree.get("salt", ""), [[e["key"], e["shape"], e["crc32"]] for e in tree["entries"]]


def _forward(folder):
    facts, arrays = {}, {}
    for name in [*TABLE, *DIALECTS, *BACKBONES]:
        where = folder if name.startswith("r") else folder / "dialects"
        facts[name] = {}
        for case, tree in json.loads((where / f"forward_{name}.json").read_text()).items():
            fact = {"image": tree["image"], "shape": tree["input_shape"]}
            fact["pytorch_float32_error"] = tree["float32_reference_error"]
            if case in _PROBED:
                fact["probes"] = {
                    key: {"shape": probe["shape"], "value": _rounded(probe["value"])}
                    for key, probe in tree["probes"].items()
                }
            facts[name][case] = fact
        if name in BACKBONES:
            continue
        for key, array in np.load(where / f"forward_{name}.npz").items():
            arrays[f"{name}/{key}"] = _pixels(array)
    return facts, arrays


def _pixels(array):
    """Samples whole pixels of an array (N, C, H, W)."""
    return recipe.sample_pixels(array.transpose(0, 2, 3, 1), max(24, 2048 // array.shape[1]))


def _inference(arrays):
    return {key: _pixels(value[None]) for key, value in arrays.items() if key.endswith("/scores")}


def _training(folder, name):
    tree = json.loads((folder / f"train_{name}.json").read_text())
    whole = np.load(folder / f"train_{name}.npz")
    kept = ("lr", "loss_cls", "loss_aux", "loss_total", "grad_l2_total", "name", "input_shape")
    facts = {key: tree[key] for key in kept}
    noise = tree["float32_reference_error"]
    facts["pytorch_float32_error"] = {
        key: value[0][1] if key.endswith("_worst") else value for key, value in noise.items()
    }
    facts["parameters"] = list(tree["grad"])
    arrays = {}
    for record in ("grad", "delta_after_1", "delta_after_5"):
        rows = [tree[record][key] for key in facts["parameters"]]
        arrays[f"{record}/l2"] = np.array([row["l2"] for row in rows])
        arrays[f"{record}/value"] = np.array([row["value"] for row in rows], np.float32)
    facts["statistics"] = list(tree["bn_after_5_l2"])
    arrays["bn_after_5/l2"] = np.array(list(tree["bn_after_5_l2"].values()))
    arrays["bn_after_1/value"] = np.array(
        [recipe.sample(whole[f"bn1/{key}"], 16) for key in facts["statistics"]]
    )
    arrays["eval_after_5/logits"] = _pixels(whole["eval_after_5/logits"])
    return facts, arrays


def _data(whole):
    arrays = {}
    for key, array in whole.items():
        if key.startswith(("resize", "photo")) and not key.endswith("labels"):
            array = array[..., ::-1]  # BGR there
        if array.dtype == np.int16:
            array = np.where(array < 0, 255, array).astype(np.uint8)
        arrays[key] = array if key.startswith("eval") else recipe.sample(array, _VALUES)
    return arrays


def main():
    folder = Path(sys.argv[1])
    for name, content in build(folder).items():
        path = Path(__file__).with_name(name)
        if isinstance(content, str):
            path.write_text(content)
        else:
            np.savez_compressed(path, **content)
        print(f"{name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
