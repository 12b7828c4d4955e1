"""Splits in lists of scenes, lists of folders, lists of another machine, and tables."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.files import find_files
from deeplab_jax.doctor.layouts import guess

TRAIN, VAL = "abcd", "ef"


def write(root, *names):
    """Writes tiny pictures and, of pairs (name, text), files."""
    for name in names:
        name, text = name if isinstance(name, tuple) else (name, None)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
        else:
            path.write_text(text)


def scenes(root, *names):
    for scene in names:
        for stem in (*TRAIN, *VAL):
            write(root, f"{scene}/images/{stem}.png", f"{scene}/masks/{stem}.png")


def used(layout):
    """Returns {split: its samples} as training would read them."""
    return {split: sorted(find_files(layout.data, split).stems) for split in layout.splits}


def lines(names, form="{}"):
    return "".join(f"{form.format(name)}\n" for name in names)


SCENE_LISTS = {
    "A/train.txt B/train.txt": ("{scene}/{split}.txt", "{}", "*/{split}.txt"),
    "paths": ("{scene}/{split}.txt", "images/{}.png", "*/{split}.txt"),
    "two columns": ("{scene}/{split}.txt", "images/{0}.png masks/{0}.png", "*/{split}.txt"),
    "splits below": ("{scene}/splits/{split}.txt", "{}", "*/splits/{split}.txt"),
    "lists apart": ("lists/{scene}/{split}.txt", "{}", "lists/*/{split}.txt"),
    "of names, in their names": ("{scene}_{split}.txt", "{}", "{{A,B}}_{split}.txt"),
    "in their names": ("lists/{scene}_{split}.txt", "{scene}/images/{0}.png",
                       "lists/{{A,B}}_{split}.txt"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCENE_LISTS)
def test_lists_of_scenes_are_used_together(tmp_path, kind):
    place, form, pattern = SCENE_LISTS[kind]
    scenes(tmp_path, "A", "B")
    for scene in "AB":
        for split, names in (("train", TRAIN), ("val", VAL)):
            text = lines(names, form.replace("{scene}", scene))
            write(tmp_path, (place.format(scene=scene, split=split), text))
    layout = guess(tmp_path)
    assert layout.data.split_file == pattern.format(split="{split}")
    assert used(layout) == {
        split: [f"{scene}/images/{name}" for scene in "AB" for name in names]
        for split, names in (("train", TRAIN), ("val", VAL))
    }
    assert not [f for f in layout.findings if f.severity == "warning"]
    if pattern == "*/{split}.txt":
        write(tmp_path, ("other/train.txt", "no\n"))
        assert guess(tmp_path).data.split_file == "{A,B}/{split}.txt"


def test_lists_of_scenes_at_other_depths_and_a_scene_of_validation(tmp_path):
    scenes(tmp_path, "A", "x/B")
    write(tmp_path, ("A/train.txt", lines(TRAIN + VAL)), ("x/B/val.txt", lines(TRAIN + VAL)))
    layout = guess(tmp_path)
    assert layout.data.split_file == "{A,x/B}/{split}.txt"
    assert [len(stems) for stems in used(layout).values()] == [6, 6]


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/images", "/home/me/ds/{}/images/a.png"])
def test_lists_name_scenes_or_files_of_another_machine(tmp_path, form):
    scenes(tmp_path, "A", "B", "C")
    write(tmp_path, ("train.txt", lines("AB", form)), ("val.txt", lines("C", form)))
    layout = guess(tmp_path)
    found = used(layout)
    assert {stem[0] for stem in found["train"]} == {"A", "B"}
    assert {stem[0] for stem in found["val"]} == {"C"}
    is_said = any("another machine" in f.title for f in layout.findings)
    assert is_said == form.startswith("/home")


def test_tables_of_scenes_are_lists_or_named(tmp_path):
    scenes(tmp_path, "A", "B", "C")
    write(tmp_path, ("scenes.csv", "# my\nscene,use,split\nA,6,train\nB,6,train\nC,6,val\n"))
    (finding,) = guess(tmp_path).findings
    exec(shlex.split(finding.fix)[-1], {})
    assert [len(stems) for stems in used(guess(tmp_path)).values()] == [12, 6]
    for split, names in (("train", "AB"), ("val", "C")):
        (tmp_path / f"{split}.txt").unlink()
        write(tmp_path, (f"{split}.csv", "scene,frames\n" + lines(names, "{},6")))
    assert [len(stems) for stems in used(guess(tmp_path)).values()] == [12, 6]


@pytest.mark.parametrize("text", ["ID,filename,score\n", "n;image;note\n"])
def test_tables_of_one_split_are_lists(tmp_path, text):
    mark = ";" if ";" in text else ","
    for split, names in (("train", TRAIN), ("val", VAL)):
        write(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in names))
        rows = lines(names, mark.join(("1", "{}.png", "0.5")))
        write(tmp_path, (f"{split}.csv", text + rows))
    assert used(guess(tmp_path)) == {"train": [*TRAIN], "val": [*VAL]}


TABLES = {
    "metadata.csv": "filename,split\n{train}.png,train\n{val}.png,val\n",
    "sub/meta data.tsv": "id\tscore\tSubset\n{train}\t1\tTraining\n{val}\t0\tTest\n",
    "info.csv": "img,phase\n{train},train\n{val},val\nx,unused\n",
    "train.csv": "ImageId,is_valid\n{train},False\n{val},True\n",
    "folds.csv": "image;fold\nimages/{train}.png;1\nimages/{val}.png;0\n",
    "splits.csv": '"n","path"\n"train","C:\\x\\images\\{train}.png"\n"val","C:\\x\\{val}.png"\n',
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_splits_in_a_column_are_named_and_the_command_makes_lists_of_them(tmp_path, name):
    head, train, val, *rest = TABLES[name].splitlines(keepends=True)
    text = head + "".join(train.replace("{train}", n) for n in TRAIN)
    text += "".join(val.replace("{val}", n) for n in VAL) + "".join(rest)
    write(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in TRAIN + VAL))
    write(tmp_path, (name, text))
    layout = guess(tmp_path)
    assert not layout.is_split
    (finding,) = (f for f in layout.findings if "tells a split in its column" in f.title)
    assert finding.severity == "warning"
    command = shlex.split(finding.fix.partition(": ")[2])
    assert command[:2] == ["python3", "-c"]
    exec(command[2], {})
    again = guess(tmp_path)
    assert [*used(again).values()] == [[*TRAIN], [*VAL]]
    assert not any("column" in f.title for f in again.findings)


def test_tables_beside_a_split_in_folders_are_noted(tmp_path):
    for split, names in (("train", TRAIN), ("val", VAL)):
        write(tmp_path, *(f"{k}/{split}/{n}.png" for k in ("images", "labels") for n in names))
    write(tmp_path, ("class_dict.csv", "name,r,g,b\nroad,1,2,3\n"))
    assert guess(tmp_path).findings == ()
    write(tmp_path, ("meta.csv", "image,split\na,val\nb,train\nc,train\n"))
    (finding,) = guess(tmp_path).findings
    assert finding.severity == "note"


def test_folds_in_folders_are_named_and_the_command_makes_lists_of_them(tmp_path):
    for fold in ("Fold 1", "Fold 2", "Fold 3"):
        write(tmp_path, *(f"{fold}/{kind}/{n}.png" for kind in ("images", "masks") for n in VAL))
    layout = guess(tmp_path)
    (finding,) = layout.findings
    assert finding.title.endswith("folds, which are all used together: Fold 1, Fold 2, Fold 3")
    for step in finding.fix.partition(": printf ")[2].split(" && printf "):
        _, *lines, _, file = shlex.split(step)
        Path(file).write_text("".join(f"{line}\n" for line in lines))
    again = guess(tmp_path)
    assert (again.splits, again.findings) == (("train", "val"), ())
    assert [len(names) for names in used(again).values()] == [2 * len(VAL), len(VAL)]
