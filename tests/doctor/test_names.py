"""Names of classes in files of annotation tools: which count, which are passed over."""

import json

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.classes import colormap
from deeplab_jax.data.images import write_png_indices
from deeplab_jax.doctor.names import Masks, find_names

NAMES = ("sky", "road sign", "tree")
COLORS = ((0, 0, 0), (128, 64, 1), (4, 5, 6))
ROWS = [(n, *c) for n, c in zip(NAMES, COLORS, strict=True)]
CVAT = "# label:color_rgb:parts:actions\n" + "".join(f"{n}:{r},{g},{b}::\n" for n, r, g, b in ROWS)
CAMVID = "".join(f"{r} {g} {b}\t{n}\n" for n, r, g, b in ROWS)
LINES = "".join(f"{n}, {r}, {g}, {b}\n" for n, r, g, b in ROWS)
TABLE = f"name,r,g,b\n{LINES}"
HEX = [{"title": n, "color": f"#{r:02X}{g:02x}{b:02x}", "id": 9000 + r} for n, r, g, b in ROWS]
VISTAS = [{"name": f"a--{n}", "readable": n, "color": [r, g, b]} for n, r, g, b in ROWS]
STUDIO = json.dumps({"categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)]})
COLORED = {
    "labelmap.txt": CVAT,
    "label_colors.txt": CAMVID,
    "Label_Colors.txt": LINES,
    "class_dict.csv": TABLE,
    "class_dict_seg.csv": TABLE.replace(",", "; "),
    "meta.json": json.dumps({"classes": HEX}),
    "config_v1.2.json": json.dumps({"labels": VISTAS}),
    "RUGD_annotation-colormap.txt": "".join(
        f"{i} {n} {r} {g} {b}\n" for i, (n, r, g, b) in enumerate(ROWS)
    ),
    "class_list.json": json.dumps({table["color"]: table["title"] for table in HEX}),
}
INDEXED = COLORED | {
    "_classes.csv": "Pixel Value, Class\n0, sky\n2, tree\n1, road sign\n",
    "class_mapping.csv": "class_name,class_color\nsky,0\nroad sign,1\ntree,2\n",
    "labels.csv": "id,name\n2,tree\n0,sky\n1,road sign\n",
    "obj_class_to_machine_color.json": json.dumps(
        {"sky": [0, 0, 0], "tree": [2, 2, 2], "road sign": [1, 1, 1]}
    ),
    "notes.json": STUDIO,
    "id2label.json": json.dumps({str(i): n for i, n in enumerate(NAMES)}),
    "class_names.txt": "\n".join(NAMES),
    "classes.txt": "\ufeff" + "\r\n".join(NAMES) + "\r\n\r\n",
    "labels.txt": "__ignore__\n" + "\n".join(NAMES),
    "obj.names": "".join(f"{i}: {n}\n" for i, n in enumerate(NAMES)),
}


def masks_of(*classes, colors=(), palette=None):
    return Masks(classes, {255}, colors, palette or {})


@pytest.mark.parametrize("name", INDEXED)
def test_names_of_values(tmp_path, name):
    (tmp_path / name).write_text(INDEXED[name], "utf-8")
    named, unused = find_names([tmp_path], masks_of(0, 1, 2))
    assert (named.path.name, unused) == (name, [])
    assert (named.names, named.values, named.palette) == (NAMES, (0, 1, 2), ())


@pytest.mark.parametrize("name", INDEXED)
def test_names_of_colours(tmp_path, name):
    (tmp_path / name).write_text(INDEXED[name], "utf-8")
    named, unused = find_names([tmp_path], masks_of(colors=COLORS[::2]))
    if name in COLORED:
        assert (named.names, named.values, named.palette) == (NAMES, (), COLORS)
    else:
        assert named is None
        assert unused == [(tmp_path / name, "has no colours, and the masks hold colours")]


@pytest.mark.parametrize(
    ("text", "classes", "expected"),
    [
        ("a\nb\nc", (0, 2), {0: "a", 1: "b", 2: "c"}),  # a class that never occurs
        ("a\nb\nc", (1, 2, 3), {1: "a", 2: "b", 3: "c"}),
        ("a\nb\nc", (1, 2), {0: "a", 1: "b", 2: "c"}),
        ("a\nb\nc", (0, 60, 120), {0: "a", 60: "b", 120: "c"}),
        ("a\nb", (0, 255), {0: "a", 255: "b"}),
        ("1 a\n4 b\n255 void", (1, 4), {1: "a", 4: "b"}),
        ("a\nb\nc", (0, 1, 2, 3), {0: "background", 1: "a", 2: "b", 3: "c"}),
        ("1 a\n2 b", (0, 1, 2), {0: "background", 1: "a", 2: "b"}),
        ("a\nbackground", (0, 1, 2), "has 2 names, and the masks hold 3 values (0..2)"),
        ("a\nb\nc", (0, 1, 2, 3, 4), "has 3 names, and the masks hold 5 values (0..4)"),
        ("a\nb\nc", (1, 2, 3, 4), "has 3 names, and the masks hold 4 values (1..4)"),
        ("0 a\n1 b\n3 c", (0, 1, 2), "has 3 names, and the masks hold 3 values (0..2)"),
        ("a\nb\na", (0, 1, 2), "leaves a class without a name, or names two alike"),
    ],
)
def test_names_fit_the_values_or_are_passed_over(tmp_path, text, classes, expected):
    (tmp_path / "classes.txt").write_text(text)
    named, unused = find_names([tmp_path], masks_of(*classes))
    if isinstance(expected, str):
        assert (named, unused) == (None, [(tmp_path / "classes.txt", expected)])
    else:
        assert dict(zip(named.values, named.names, strict=True)) == expected


def test_palettes_tell_which_value_a_coloured_name_is_of(tmp_path):
    (tmp_path / "labelmap.txt").write_text(CVAT)
    palette = {0: COLORS[0], 1: COLORS[2], 2: COLORS[1]}
    named, _ = find_names([tmp_path], masks_of(0, 1, 2, palette=palette))
    assert named.names == ("sky", "tree", "road sign")
    named, _ = find_names([tmp_path], masks_of(0, 1, 2, palette={0: COLORS[0], 1: (9, 9, 9)}))
    assert named.names == NAMES  # of other colours: by order


def test_colours_that_a_file_lacks_are_told(tmp_path):
    (tmp_path / "labelmap.txt").write_text(CVAT)
    named, ((_, reason),) = find_names([tmp_path], masks_of(colors=[*COLORS, (7, 7, 7)]))
    assert named is None
    assert reason == "lacks 1 of the masks' 4 colours, such as (7, 7, 7)"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("classes.txt", "背景\n道路".encode("gbk"), "is no text in UTF-8: save it as UTF-8"),
        ("notes.json", b"{", "is no JSON"),
        ("config.json", b'{"lr": 0.1}', ""),  # about something else
        ("meta.json", b"3", ""),
        ("_classes.csv", b"", ""),
    ],
)
def test_files_that_hold_no_names(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    assert find_names([tmp_path], masks_of(0, 1)) == (
        None, [(tmp_path / name, reason)] if reason else []
    )  # fmt: skip


def test_without_classes_no_names_fit(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb")
    assert find_names([tmp_path], masks_of()) == (None, [])


def test_names_are_in_the_report_and_the_recipe(make_tree, recipe_of, doctor):
    root = make_tree("folder", num_train=6, num_val=2)
    names = ("sky", "road", "car", "tree")
    (root / "labels" / "classes.txt").write_text("\n".join(names))
    (root / "labels.txt").write_text("a\nb\n")
    *_, out, _, report = ("", *doctor("--data", root))
    assert "classes  4 (names of labels/classes.txt)" in out
    assert [row["name"] for row in report["classes"]] == list(names)
    notes = [f["items"] for f in report["findings"] if f["kind"] == "class-names"]
    assert notes == []  # the first that fits ends the search
    assert "foreign-files" not in {f["kind"] for f in report["findings"]}
    assert recipe_of(root).data.class_names == names
    (root / "labels" / "classes.txt").write_text("a")
    *_, report = doctor("--data", root)
    assert [f["items"] for f in report["findings"] if f["kind"] == "class-names"] == [[
        "labels/classes.txt: has 1 names, and the masks hold 4 values (0..3)",
        "labels.txt: has 2 names, and the masks hold 4 values (0..3)",
    ]]  # fmt: skip


def test_colours_and_names_of_a_file_are_declared(make_tree, recipe_of):
    root = make_tree("folder", num_train=6, num_val=2)
    colors = colormap(6)[1:]
    for path in root.rglob("*.png"):
        label = np.array(Image.open(path))
        Image.fromarray(colors[np.minimum(label, 4)]).save(path)
    (root / "labelmap.txt").write_text(
        "".join(f"c{i}:{r},{g},{b}::\n" for i, (r, g, b) in enumerate(colormap(7).tolist()))
    )
    config = recipe_of(root)
    assert config.data.class_names == tuple(f"c{i}" for i in range(7))
    assert config.data.class_colors == tuple(colormap(7).ravel())
    for path in root.rglob("*.png"):
        label = np.array(Image.open(path))[..., 0] // 128
        write_png_indices(path, label, colormap(7))
    config = recipe_of(root, "again.py")
    assert (config.data.mask_format, config.data.class_names) == ("index", ("c0", "c1"))


def test_the_version_of_the_masks_goes_first(tmp_path):
    for version, names in (("1.2", ["a", "b"]), ("2.0", ["c", "d"])):
        labels = [{"readable": name, "color": [k, k, k]} for k, name in enumerate(names)]
        (tmp_path / f"config_v{version}.json").write_text(json.dumps({"labels": labels}))
    masks = Masks((0, 1), (), (), {})
    for place, names in (("{split}/v2.0/labels", ("c", "d")), ("{split}/labels", ("a", "b"))):
        assert find_names([tmp_path], masks, place)[0].names == names


def test_the_background_of_machine_masks_needs_no_entry(tmp_path):
    path = tmp_path / "obj_class_to_machine_color.json"
    path.write_text(json.dumps({"car": [1, 1, 1], "tree": [2, 2, 2]}))
    named, _ = find_names([tmp_path], Masks((0, 1, 2), (), (), {}))
    assert named.names == ("background", "car", "tree")


def test_names_without_background_come_after_those_that_fit_and_are_said(make_tree, doctor):
    root = make_tree("folder", num_train=6, num_val=2)  # values 0..3
    entries = [{"title": t, "color": f"#{k}000ff", "id": 77 + k} for k, t in enumerate("abc")]
    (root / "meta.json").write_text(json.dumps({"classes": entries}))
    _, out, *_ = doctor("--data", root)
    assert "(names of meta.json, with background in front for 0, which it does not name)" in out
    (root / "classes.txt").write_text("w\nx\ny\nz\n")
    assert "(names of classes.txt)" in doctor("--data", root)[1]
    (root / "classes.json").write_text('["a", "b", "c"]')
    *_, report = doctor("--data", root)
    (fix,) = (f["fix"] for f in report["findings"] if f["kind"] == "unknown-value")
    assert fix.endswith("or name all classes in classes.json, which names 3")


def test_black_is_the_background_that_a_table_of_colours_lacks(tmp_path):
    (tmp_path / "labelmap.txt").write_text("a:1,2,3::\nb:4,5,6::\n")
    black, own = (0, 0, 0), ((1, 2, 3), (4, 5, 6))
    named, _ = find_names([tmp_path], masks_of(colors=[*own, black]))
    assert (named.names, named.palette) == (("background", "a", "b"), (black, *own))
    assert "background in front for black" in named.more
