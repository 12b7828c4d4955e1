"""What is told of places, names and splits that are not used, or not as they lie."""

import io
import shlex
import unicodedata

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.files import find_files
from deeplab_jax.data.images import read_label
from deeplab_jax.doctor import rules, survey
from deeplab_jax.doctor.layouts import guess
from deeplab_jax.errors import DataError

_RANDOM = np.random.default_rng(0)


def _encode(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _box(*corners):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[slice(*corners[:2]), slice(*corners[2:])] = 255
    return _encode(pixels)


PIXELS = {
    "photo": _encode(_RANDOM.integers(0, 256, (16, 16, 3), np.uint8)),
    "mask": _encode(_RANDOM.integers(0, 3, (16, 16), np.uint8)),
    "left": _box(2, 14, 1, 7),
    "right": _box(2, 14, 7, 14),  # of another class
    "again": _box(2, 14, 1, 8),  # "left", drawn by another hand
}
FOUR, TWO = range(4), range(6, 8)


def plant(root, *groups):
    """Writes files of (numbers, "kind place", ...); {i} is the number."""
    for numbers, *places in groups:
        for text in places:
            kind, place = text.split(" ", 1)
            for i in numbers:
                path = root / place.format(i=f"{i:03d}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(PIXELS[kind])


def told(layout):
    return [(f.severity, " | ".join((f.title, f.fix, *f.items))) for f in layout.findings]


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [("fine", "coarse"), ("gt_fine", "gt_coarse"), ("masks_hq", "masks_lq"),
     ("fine_annotations", "coarse_annotations"), ("masks/fine", "masks/coarse"),
     ("fine", "masks_coarse"), ("masks_refined", "masks"), ("masks", "masks_auto")],
)  # fmt: skip
@pytest.mark.parametrize("number", [4, 2])
def test_fine_masks_go_before_coarse_ones_that_cover_no_more(tmp_path, fine, coarse, number):
    plant(tmp_path, (FOUR, "photo images/{i}.jpg", f"mask {coarse}/{{i}}.png"),
          (range(number), f"mask {fine}/{{i}}.png"))  # fmt: skip
    layout = guess(tmp_path)
    used, rival = (fine, coarse) if number == 4 else (coarse, fine)
    assert layout.data.masks == used
    ((severity, text),) = told(layout)
    assert severity == "warning"
    pairs = number if rival == fine else 4
    assert f': {pairs} pairs; data.images="images" data.masks="{rival}"' in text


def test_other_masks_are_named_where_nearer_ones_are_used(tmp_path):
    plant(tmp_path, (FOUR, "photo a/images/{i}.jpg", "mask a/masks/{i}.png",
                     "mask gt_b/{i}.png"))  # fmt: skip
    layout = guess(tmp_path)
    ((severity, text),) = told(layout)
    assert (layout.data.masks, severity) == ("a/masks", "warning")
    assert 'data.masks="gt_b"' in text


PER_CLASS = [  # images, masks of each class, how these are told, place of merged ones
    ("photo images/{i}.jpg", "masks/{c}/{i}.png", "masks/CLASS/NAME.png", "labels/NAME.png"),
    ("photo {i}.jpg", "{i}_{c}.png", "NAME_CLASS.png", "labels/NAME.png"),
    ("photo images/{i}.jpg", "masks/{c}_{i}.png", "masks/CLASS_NAME.png", "labels/NAME.png"),
    ("photo images/{i}.jpg", "mask_{c}/{i}.png", "mask_CLASS/NAME.png", "labels/NAME.png"),
    ("photo images/{i}.jpg", "{c}/{i}.png", "CLASS/NAME.png", "labels/NAME.png"),
    ("photo images/{i}.jpg", "masks/{i}/{c}.png", "masks/NAME/CLASS.png", "labels/NAME.png"),
    ("photo {i}/image.jpg", "{i}/masks/{c}.png", "NAME/masks/CLASS.png", "NAME/label.png"),
    ("photo train/images/{i}.jpg", "train/masks/{c}/{i}.png", "train/masks/CLASS/NAME.png",
     "train/labels/NAME.png"),
    ("photo images/{i}.jpg", "masks/task-{i}-annotation-7-by-1-tag-{c}-0.png",
     "masks/task-N-annotation-N-by-N-tag-CLASS-N.png", "labels/NAME.png"),
]  # fmt: skip


@pytest.mark.parametrize(("images", "masks", "place", "target"), PER_CLASS)
def test_masks_of_one_class_each_are_refused_and_told_how_to_merge(
    tmp_path, images, masks, place, target
):
    left, right = f"left {masks}".replace("{c}", "car"), f"right {masks}".replace("{c}", "tree")
    plant(tmp_path, (FOUR, images, left), (range(2), right))
    with pytest.raises(DataError) as error:
        guess(tmp_path)
    assert f"{place}, masks of each CLASS: car 4, tree 2" in error.value.what
    assert "mask[car > 0] = 1, mask[tree > 0] = 2 (where classes overlap" in error.value.fix
    assert f"saved as {target}" in error.value.fix
    if images.endswith("images/{i}.jpg"):  # a merged mask is used, and these are still told
        plant(tmp_path, (FOUR, f"mask {target.replace('NAME', '{i}')}"))
        layout = guess(tmp_path)
        assert layout.data.masks == target.removesuffix("/NAME.png")
        assert [severity for severity, text in told(layout) if place in text] == ["warning"]


def test_index_masks_beside_those_of_one_class_are_used(tmp_path):
    plant(tmp_path, (FOUR, "photo images/{i}.jpg", "left masks/car/{i}.png",
                     "right masks/tree/{i}.png", "mask masks/whole/{i}.png"))  # fmt: skip
    layout = guess(tmp_path)
    ((severity, text),) = told(layout)
    assert (layout.data.masks, severity) == ("masks/whole", "warning")
    assert "masks/CLASS/NAME.png, masks of each CLASS: car 4, tree 4" in text


def test_all_classes_that_names_tell_are_named(tmp_path):
    classes = [f"x{letter}" for letter in "abcdefghi"]
    plant(tmp_path, (FOUR, "photo images/{i}.jpg", *(f"left masks/{{i}}_{c}.png"
                                                     for c in classes[::2]),
                     *(f"right masks/{{i}}_{c}.png" for c in classes[1::2])))  # fmt: skip
    with pytest.raises(DataError, match=r"xh 4, \.\.\. \(1 more\)"):
        guess(tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [("left alice/{i}.png", "again bob/{i}.png"), ("left {i}_1stHO.png", "right {i}_2ndHO.png"),
     ("mask masks/car/{i}.png", "left masks/tree/{i}.png"),
     ("left labels/{i}.png", "right labels_v2/{i}.png"),
     ("left masks/expert1/{i}.png", "right masks/expert2/{i}.png"),
     ("left fine/{i}.png", "right coarse/{i}.png")],
)  # fmt: skip
def test_masks_of_the_same_by_two_hands_are_rivals_and_no_classes(tmp_path, one, other):
    image = "photo {i}.jpg" if "HO" in one else "photo images/{i}.jpg"
    plant(tmp_path, (FOUR, image, one, other))
    ((severity, text),) = told(guess(tmp_path))
    assert (severity, "is chosen among 2 of like names" in text) == ("warning", True)


@pytest.mark.parametrize(
    ("image", "mask", "other", "form", "to"),
    [("images/{i}.jpg", "masks/{i}.png", "masks/{i}_mask.png", "NAME_mask.png", "NAME.png"),
     ("images/{i}.jpg", "masks/{i}_mask.png", "masks/{i}.png", "NAME.png", "NAME.png"),
     ("{i}.jpg", "{i}.png", "{i}_mask.png", "NAME_mask.png", "NAME.png"),
     ("images/{i}.jpg", "masks/{i}_mask.png", "masks/{i}_gt.png", "NAME_gt.png", "NAME_mask.png"),
     ("train/images/{i}.jpg", "train/masks/{i}.png", "train/masks/gt_{i}.png", "gt_NAME.png",
      "NAME.png")],
)  # fmt: skip
def test_masks_of_two_rules_of_names_are_told_with_counts(tmp_path, image, mask, other, form, to):
    plant(tmp_path, (FOUR, f"photo {image}", f"mask {mask}"), (TWO, f"photo {image}",
                                                               f"mask {other}"))  # fmt: skip
    findings = rules.check(survey.survey_folder(guess(tmp_path)))
    (error,) = (f for f in findings if f.severity == "error")  # none says that masks are missing
    assert error.title.startswith(f"2 images have masks named {form}, the other 4 NAME")
    assert f"to {to}" in error.fix
    assert error.items[0] == " with ".join(text.format(i="006") for text in (image, other))


@pytest.mark.parametrize(
    ("image", "mask", "suffix"),
    [("images/{}.jpg", "masks/{}.png", ""), ("images/{}.jpg", "masks/{}_mask.png", "_mask"),
     ("{}.jpg", "{}.png", ""), ("{}_rgb.png", "{}_label.png", ""),
     ("images/{}/a.jpg", "masks/{}/a.png", "")],
)  # fmt: skip
def test_names_of_two_unicode_forms_pair(tmp_path, image, mask, suffix):
    names = ["caf\u00e9", "\u00fcber", "plain", "\u00e5"]
    forms = ("NFC", "NFD") if "/a." not in image else ("NFC", "NFC")
    for n, name in enumerate(names):
        for kind, place, form in (("photo", image, forms[n % 2]), ("mask", mask, forms[1 - n % 2])):
            plant(tmp_path, ((0,), f"{kind} {place.format(unicodedata.normalize(form, name))}"))
    layout = guess(tmp_path)
    assert (layout.data.mask_suffix, layout.findings) == (suffix, ())
    found = find_files(layout.data, "all")
    assert len(found.stems) == 4
    assert {*found.stems} == found.images.keys() == found.masks.keys()


@pytest.mark.parametrize(
    ("places", "severity", "item"),
    [(["photo {s}/images/{i}.jpg", "mask {s}/masks/{i}.png", "C/images"], "warning", "C/images"),
     (["photo images/{s}/{i}.jpg", "mask labels/{s}/{i}.png", "images/C"], "warning", "images/C"),
     (["photo images/{s}/{i}.jpg", "mask labels/{s}/{i}.png", "images/test"], "note",
      "images/test"),
     (["photo {s}/Urban/images_png/{i}.png", "mask {s}/Urban/masks_png/{i}.png",
       "Test/Urban/images_png"], "note", "Test/Urban/images_png"),
     (["photo {s}_Data/{i}.jpg", "mask {s}_GroundTruth/{i}_segmentation.png", "ISIC_Test_Input"],
      "note", "ISIC_Test_Input"),
     (["photo {s}/{i}.jpg", "mask {s}/{i}_mask.png", "test"], "note", "test"),
     (["photo {s}/images/{i}.jpg", "mask {s}/masks/{i}.png", "unlabeled"], "note", "unlabeled"),
     (["photo {s}/images/{i}.jpg", "mask {s}/masks/{i}.png", "not_annotated/images"], "note",
      "not_annotated/images")],
)  # fmt: skip
@pytest.mark.parametrize("splits", [("A", "B"), ("train", "val")])
def test_images_without_masks_are_told_with_their_number(tmp_path, places, severity, item, splits):
    *pairs, alone = places
    for split, numbers in zip(splits, (FOUR, TWO), strict=True):
        plant(tmp_path, (numbers, *(place.replace("{s}", split) for place in pairs)))
    plant(tmp_path, (range(10, 13), f"photo {alone}/{{i}}.{pairs[0][-3:]}"))
    layout = guess(tmp_path)
    assert layout.is_split == (splits[0] == "train")
    assert [s for s, text in told(layout) if f"| {item}: 3 images" in text] == [severity]


@pytest.mark.parametrize(
    "places",
    [["photo cam{k}_rgb_{i}.png", "mask cam{k}_label_{i}.png"],
     ["photo images/cam{k}_rgb_{i}.png", "mask masks/cam{k}_label_{i}.png"],
     ["photo train/{i}.rf.ab{k}.jpg", "mask train/{i}.rf.ab{k}_mask.png"]],
)  # fmt: skip
def test_parts_of_what_is_used_are_no_rivals(tmp_path, places):
    for k in (1, 2):
        plant(tmp_path, (FOUR, *(place.replace("{k}", str(k)) for place in places)))
    layout = guess(tmp_path)
    assert layout.findings == ()
    assert len(find_files(layout.data, layout.splits[0]).stems) == 8


@pytest.mark.parametrize(
    "other", ["photo old_preds/{i}_preview.jpg", "mask old_preds/{i}_prob.png"]
)
def test_folder_of_old_results_is_told_once(tmp_path, other):
    plant(tmp_path, (FOUR, "photo images/{i}.jpg", "mask masks/{i}.png",
                     "mask old_preds/{i}_pred.png", other))  # fmt: skip
    ((severity, text),) = told(guess(tmp_path))
    assert (severity, text.count("images with old_preds")) == ("warning", 1)


@pytest.mark.parametrize(
    ("train", "val", "fix"),
    [(["train/images", "train/masks"], ["val/img", "val/gt"],
      "mv val/img val/images && mv val/gt val/masks"),
     (["images/train", "masks/train"], ["img/val", "gt/val"],
      "mv img/val images/val && mv gt/val masks/val"),
     (["train_images", "train_masks"], ["val_img", "val_masks"], "mv val_img val_images"),
     (["images", "masks"], ["val_images", "val_masks"],
      "mv images train_images && mv masks train_masks"),
     (["images", "masks"], ["val/images", "val/masks"],
      "mkdir -p train && mv images train/images && mv masks train/masks")],
)  # fmt: skip
def test_split_in_folders_of_other_names_is_told_with_commands(tmp_path, train, val, fix):
    for numbers, (images, masks) in ((FOUR, train), (TWO, val)):
        plant(tmp_path, (numbers, f"photo {images}/{{i}}.jpg", f"mask {masks}/{{i}}.png"))
    layout = guess(tmp_path)
    assert (layout.data.images, layout.is_split) == (train[0], False)
    ((severity, text),) = told(layout)
    assert (severity, f"{val[0]} with {val[1]} is your split val (2 pairs)" in text) == (
        "warning", True)  # fmt: skip
    assert f"cd {tmp_path} && {fix};" in text
    for step in fix.split(" && "):  # as the shell would
        command, *paths = step.split(" ")
        if command == "mv":
            (tmp_path / paths[0]).rename(tmp_path / paths[1])
        else:
            (tmp_path / paths[1]).mkdir()
    layout = guess(tmp_path)
    assert (layout.splits, layout.findings) == (("train", "val"), ())


def test_split_whose_masks_have_other_names_is_told(tmp_path):
    plant(tmp_path, (FOUR, "photo train/images/{i}.jpg", "mask train/masks/{i}.png"),
          (TWO, "photo val/images/{i}.jpg", "mask val/masks/{i}_mask.png"))  # fmt: skip
    ((severity, text),) = told(guess(tmp_path))
    assert (severity, "(NAME_mask) is your split val (2 pairs)" in text) == ("warning", True)
    assert f"find {tmp_path}/val/masks -name '*_mask.png'" in text


def test_few_images_are_told_without_a_batch_that_is_not_proposed(tmp_path):
    plant(tmp_path, (FOUR, "photo images/{i}.jpg", "mask masks/{i}.png"))
    findings = rules.check(survey.survey_folder(guess(tmp_path)))
    (few,) = (f for f in findings if f.kind == "few-images")
    assert "do not fill" not in few.title
    assert "--write-config has a batch that they fill" in few.fix


@pytest.mark.parametrize("suffix", [".gif", ".PGM", ".npy"])
def test_pictures_of_other_formats_are_stored_anew_by_the_command(tmp_path, suffix):
    plant(tmp_path, (FOUR, "photo training/images/{i}_training.jpg"))
    mask = np.arange(32 * 32).reshape(32, 32) // 256
    for i in FOUR:
        path = tmp_path / f"training/1st_manual/{i:03d}_manual1{suffix}"
        path.parent.mkdir(exist_ok=True)
        if suffix == ".npy":
            np.save(path, mask)
        else:
            Image.fromarray(mask.astype(np.uint8)).save(path)
    with pytest.raises(DataError) as caught:
        guess(tmp_path)
    assert f"not read: 4 {suffix.lower()}" in caught.value.what
    exec(shlex.split(caught.value.fix.partition(": ")[2])[2], {})
    files = find_files(guess(tmp_path).data, "training")
    assert len(files.stems) == 4
    assert all((read_label(path) == mask).all() for path in files.masks.values())


def test_annotations_without_masks_are_told(tmp_path):
    for split in ("train", "valid"):
        plant(tmp_path, (FOUR, f"photo {split}/{{i}}.jpg"))
        (tmp_path / split / "_annotations.coco.json").write_text("{}")
    with pytest.raises(DataError, match=r"2 \.json, which may be annotations, are no masks"):
        guess(tmp_path)


def test_training_images_without_a_folder_of_masks_are_told_and_no_split(tmp_path):
    plant(tmp_path, (FOUR, "photo images/train/{i}.jpg"), (FOUR, "photo images/val/1{i}.jpg"),
          (FOUR, "mask labels/val/1{i}.png"))  # fmt: skip
    layout = guess(tmp_path)
    ((severity, text),) = told(layout)
    assert (severity, layout.is_split, layout.splits) == ("warning", False, ("val",))
    assert "split train has 4 images without masks, and is not used" in text


def test_several_masks_of_each_image_and_archives_are_told(tmp_path):
    plant(tmp_path, (FOUR, "photo train/x{i}/images/x{i}.png", "mask train/x{i}/masks/left.png",
                     "mask train/x{i}/masks/other.png"))  # fmt: skip
    with pytest.raises(DataError, match=r"several masks for each image, in .* train/x000/masks"):
        guess(tmp_path)
    plant(tmp_path / "other", (FOUR, "photo images/{i}.png"))
    (tmp_path / "other/masks.zip").touch()
    with pytest.raises(DataError, match=r"archives: 1 \.zip - unpack the archives"):
        guess(tmp_path / "other")


def test_left_and_right_masks_in_camel_case_are_of_one_class_each(tmp_path):
    plant(tmp_path, (FOUR, "photo CXR_png/{i}.png", "left Manual/leftMask/{i}.png",
                     "right Manual/rightMask/{i}.png"))  # fmt: skip
    with pytest.raises(DataError, match=r"Manual/CLASSMask/NAME.png, .* left 4, right 4"):
        guess(tmp_path)
