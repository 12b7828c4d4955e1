"""What is found in data sets with faults, by the whole command."""

import itertools
import os
import shlex
import shutil

import cv2
import numpy as np
import planted
import pytest
from PIL import Image

from deeplab_jax.data.classes import colormap
from deeplab_jax.data.images import write_png_indices


def kinds(report, severity):
    return {f["kind"] for f in report["findings"] if f["severity"] == severity}


def items(report, kind):
    return [item for f in report["findings"] if f["kind"] == kind for item in f["items"]]


def is_found(report, fault, name):
    severity, kind = planted.FAULTS[fault]
    return any(
        (finding["severity"], finding["kind"]) == (severity, kind)
        and (kind == "foreign-files" or any(name in item for item in finding["items"]))
        for finding in report["findings"]
    )


@pytest.mark.parametrize("is_described", [False, True])
def test_every_fault_is_found_at_once(make_tree, doctor, is_described, recipe_flags):
    root = make_tree("folder", num_train=60)
    # Classes of different frequency, in blocks that keep inner pixels when planted with faults.
    rng = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        height, width = np.array(Image.open(path)).shape
        blocks = rng.choice(4, (7, 7), p=(0.55, 0.03, 0.3, 0.12)).astype(np.uint8)
        label = blocks.repeat(14, 0).repeat(14, 1)[:height, :width]
        label[5:12, 20:31] = 255
        Image.fromarray(label).save(path)
    names = [f"{2 * i:03d}" for i in range(len(planted.FAULTS))]
    used = planted.plant(root, names)
    code, out, err, report = doctor(*(recipe_flags(root) if is_described else ["--data", root]))
    assert code == 3
    assert err.startswith(f"error: {root}: ")
    assert err.count("\n") == 1
    assert [fault for fault, name in used.items() if not is_found(report, fault, name)] == []
    # Worst first.
    order = [line.split()[0] for line in out.splitlines() if line[:1] in "EWN" and line.strip()]
    assert order == sorted(order, key=["ERROR", "WARNING", "NOTE"].index)


def test_masks_one_too_high_for_a_recipe_name_the_field(make_tree, doctor, recipe_flags):
    root = make_tree("folder")
    for path in root.rglob("*.png"):
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label < 255, label + 1, 255).astype(np.uint8)).save(path)
    code, out, _, report = doctor(*recipe_flags(root))
    assert code == 3
    assert len(items(report, "unknown-value")) == 16
    assert "config.data.reduce_zero_label=true" in out
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "warning")) == (0, {"shifted"})


def test_class_that_a_split_lacks_is_named(make_tree, doctor):
    root = make_tree("folder")
    for path in (root / "labels/train").iterdir():
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 2, 1, label)).save(path)
    code, _, _, report = doctor("--data", root)
    assert (code, items(report, "absent-class")) == (0, ["2: class_2"])


def test_fewer_images_than_a_batch(make_tree, doctor, recipe_flags):
    root = make_tree("folder", num_train=3)
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "warning")) == (0, {"few-images"})
    code, _, _, report = doctor(*recipe_flags(root))
    assert (code, kinds(report, "error")) == (3, {"few-images"})


def test_palettes_that_disagree_are_named(make_tree, doctor):
    root = make_tree("folder")
    for path in root.rglob("*.png"):
        label = np.array(Image.open(path))
        colors = colormap(256)[::-1] if path.stem == "003" else colormap(256)
        write_png_indices(path, label, colors)
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "note")) == (0, {"palette"})
    assert {item.split(":")[0] for item in items(report, "palette-differs")} == {
        "labels/train/003.png", "labels/val/003.png"
    }  # fmt: skip


def test_pipes_are_told_and_not_waited_for(make_tree, doctor):
    root = make_tree("folder", num_train=10)
    (root / "classes.json").write_text('["a", "b", "c", "d"]')
    for name in ("images/train/001.jpg", "labels/train/000.png"):
        (root / name).unlink()
        os.mkfifo(root / name)
    code, _, _, report = doctor("--data", root)
    assert code == 3
    assert "images/train/001.jpg: is a pipe" in items(report, "unreadable-image")[0]
    assert "labels/train/000.png: is a pipe" in items(report, "unreadable-mask")[0]


def test_palette_masks_among_grey_ones_are_named(make_tree, doctor):
    root = make_tree("folder")
    path = root / "labels/train/003.png"
    write_png_indices(path, np.array(Image.open(path)), colormap(256))
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "warning")) == (0, {"mixed-masks"})
    assert items(report, "mixed-masks") == ["labels/train/003.png"]


def test_grey_stored_as_colours_is_an_index(make_tree, doctor):
    root = make_tree("folder")
    path = root / "labels/train/003.png"
    Image.open(path).convert("RGB").save(path)
    code, out, _, report = doctor("--data", root)
    assert (code, kinds(report, "error"), kinds(report, "warning")) == (0, set(), set())
    assert "1 mask stores class indices in RGB, and is read like grey ones" in out


def test_transparent_masks_are_named(make_tree, doctor):
    root = make_tree("folder")
    for path in root.rglob("*.png"):
        label = np.array(Image.open(path))
        alpha = np.full_like(label, 255)
        alpha[:13] = 0
        colors = colormap(4)[np.minimum(label, 3)]
        Image.fromarray(np.dstack((colors, alpha))).save(path)
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "warning")) == (3, {"transparent"})
    assert kinds(report, "error") == {"color-mask"}  # until the recipe declares them
    assert items(report, "transparent")[0] == "labels/train/000.png: 1261 pixels (20.0 %)"
    assert report["ignored_share"] == pytest.approx((13 / 65 + 13 / 97) / 2)
    assert [c["masks"]["val"] for c in report["classes"]] == [4] * 4  # of undeclared colours, too


def test_masks_turned_by_exif_are_named(make_tree, doctor):
    root = make_tree("folder")
    for name, tag in (("002", 6), ("004", 3)):  # on its side, upside down
        exif = Image.Exif()
        exif[0x0112] = tag
        path = root / f"labels/train/{name}.png"
        Image.open(path).save(path, exif=exif)
    code, _, _, report = doctor("--data", root)
    assert code == 3
    found = {f["severity"]: f["items"] for f in report["findings"] if f["kind"] == "exif"}
    assert found == {
        "error": ["labels/train/002.png: EXIF orientation 6"],
        "warning": ["labels/train/004.png: EXIF orientation 3"],
    }
    assert not items(report, "size")


def test_copied_masks_are_named(make_tree, doctor):
    root = make_tree("folder")
    labels = root / "labels/train"
    for name in ("006", "008"):
        (root / f"images/train/{name}.jpg").unlink()
        shutil.copy(labels / "004.png", root / f"images/train/{name}.png")
    shutil.copy(labels / "004.png", labels / "006.png")
    shutil.copy(labels / "001.png", labels / "003.png")
    *_, report = doctor("--data", root)
    assert items(report, "image-as-mask") == ["labels/train/006.png"]
    assert items(report, "same-mask") == ["labels/train/001.png = labels/train/003.png"]


def test_links_and_names_that_cannot_be_hide_nothing_else(make_tree, doctor):
    root = make_tree("folder")
    for name in ("000.png", "001.png"):
        cv2.imwrite(str(root / "images/train" / name), np.zeros((65, 97, 3), np.uint8))
    (root / "labels/train/loop").symlink_to(root / "labels/train")
    shutil.copy(root / "images/train/003.jpg", root / "images/train/004.jpg")
    code, _, _, report = doctor("--data", root)
    assert code == 3
    found = items(report, "files")
    assert sum("has the same name as" in item for item in found) == 2
    assert sum("is a link to a folder it lies in" in item for item in found) == 1
    assert len(items(report, "duplicate")) == 1


def test_planted_faults_in_camvid_are_found_and_the_clean_copy_has_none(shared, tmp_path, doctor):
    root = tmp_path / "camvid"
    shutil.copytree(shared / "data" / "camvid", root)
    code, _, _, report = doctor("--data", root)
    found = [(finding["severity"], finding["kind"]) for finding in report["findings"]]
    assert (code, found) == (0, [("note", "rare-class")])  # pedestrians and cyclists are rare
    assert [len(report["classes"]), *report["splits"].values()] == [11, 367, 101]
    print(report["speed"])
    names = sorted(path.stem for path in (root / "images/train").iterdir())
    used = planted.plant(root, names[5::16][: len(planted.FAULTS)])
    code, _, _, report = doctor("--data", root)
    assert code == 3
    assert [fault for fault, name in used.items() if not is_found(report, fault, name)] == []


def test_a_fourth_band_without_a_mark_is_named_once(make_tree, doctor):
    root = make_tree("folder", num_train=6, num_val=2)
    modes = itertools.cycle(("RGB", "RGBA", "RGBX"))
    names = []
    for path in sorted((root / "images").rglob("*.jpg")):
        mode = next(modes)
        names += [str(path.with_suffix(".tif").relative_to(root))] * (mode == "RGBX")
        Image.open(path).convert(mode).save(path.with_suffix(".tif"))
        path.unlink()
    code, *_, report = doctor("--data", root)
    (found,) = (f for f in report["findings"] if f["kind"] == "extra-band")
    assert (code, found["severity"], found["items"]) == (0, "warning", names)
    assert "gdal_translate -b 1 -b 2 -b 3" in found["fix"]


WHITE = np.array([0, 255], np.uint8)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda m, n: 85 * m, "white", "may be a class: of 0, 85, 170, 255"),
        (lambda m, n: WHITE[m % 2] if n % 2 else m % 2, "white", "hold 0 and 255 alone"),
        (lambda m, n: m * np.uint16(1000) + n % 2, "objects", "8 values of 4 classes"),
    ],
)
def test_values_with_another_meaning_are_told(make_tree, doctor, change, kind, told):
    root = make_tree("folder", num_train=6, num_val=2)
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        label = np.minimum(np.array(Image.open(path)), 3)
        label[:40:20] = np.arange(4, dtype=np.uint8).repeat(25)[: label.shape[1]]
        Image.fromarray(change(label, number)).save(path)
    code, out, _, report = doctor("--data", root)
    found = [f for f in report["findings"] if f["kind"] == kind]
    assert (code, [f["severity"] for f in found]) == (0, ["warning"]), out
    assert told in found[0]["title"]


@pytest.mark.parametrize(("kind", "suffix"), [("blended-mask", ".png"), ("lossy-mask", ".jpg")])
def test_black_and_white_masks_are_mended_by_the_command(make_tree, doctor, kind, suffix):
    root = make_tree("folder", num_train=6, num_val=2)
    drawn = {}
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        label = np.zeros(np.array(Image.open(path)).shape, np.uint8)
        cv2.circle(label, (30 + number, 30), 20, 255, -1, cv2.LINE_AA)
        drawn[path] = (label > 127) * np.uint8(255)
        path.unlink()
        Image.fromarray(label).save(path.with_suffix(suffix))
    code, out, _, report = doctor("--data", root)
    (finding,) = (f for f in report["findings"] if f["severity"] == "error")
    assert (code, finding["kind"], len(finding["items"])) == (3, kind, 8)
    command = finding["fix"].rpartition(": python3")[2]
    assert f"python3{command}" in map(str.strip, out.splitlines())  # to be copied whole
    exec(shlex.split(command)[1], {})
    code, _, _, report = doctor("--data", root)
    assert (code, kinds(report, "warning")) == (0, {"few-images"})
    assert all((np.array(Image.open(p)) == label).mean() > 0.99 for p, label in drawn.items())


def test_more_pictures_of_an_image_are_told_and_set_aside_by_the_command(make_tree, doctor):
    root = make_tree("folder", num_train=8, num_val=2)
    for path in root.rglob("*.png"):
        shutil.copy(path, path.with_stem(f"{path.stem}_inst"))
    (root / "images/train/007.jpg").rename(root / "images/train/007_b.jpg")  # no more of another
    code, _, _, report = doctor("--data", root)
    assert (code, len(items(report, "further"))) == (3, 9)
    (finding,) = (f for f in report["findings"] if f["kind"] == "further")
    assert "labels/train/000_inst.png beside images/train/000.jpg" in finding["items"]
    exec(shlex.split(finding["fix"].partition(": ")[2])[2], {})
    assert not items(doctor("--data", root)[3], "further")
    assert len([*root.rglob("*_inst.png.old")]) == 10
