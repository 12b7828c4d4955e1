"""Draws folder trees; every image is used or named, and nothing without a mask is used."""

import io
import re
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deeplab_jax.data.files import find_files
from deeplab_jax.doctor.layouts import guess


def encode(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PIXELS = {"photo": encode(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)),
          "mask": encode(np.random.default_rng(0).integers(0, 3, (16, 16), np.uint8))}  # fmt: skip
NAMES = {  # how an image and its mask are called
    "same": ("{}.png", "{}.png"),
    "suffix": ("{}.png", "{}_mask.png"),
    "both": ("{}_rgb.png", "{}_label.png"),
    "prefix": ("img_{}.png", "mask_{}.png"),
    "middle": ("v_rgb_{}.png", "v_gt_{}.png"),
}
ROLES = [("images", "masks"), ("img", "ann"), ("JPEGImages", "SegmentationClass"), ("x", "y"),
         ("images_png", "masks_png"), ("rgb", "semantic"), ("scans", "1st_manual"),
         ("leftImg8bit", "gtFine"), ("images", "images/masks"), ("", "")]  # fmt: skip
BESIDE = {"depth": "mask", "thumbnails": "photo", "overlays": "photo", "instances": "mask",
          "masks_color": "mask"}  # fmt: skip
SPLITS = [("train", "val"), ("Train", "Val"), ("train2017", "val2017"), ("training", "testing")]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "cp1252"]
SITES = [("",), ("", "b"), ("a", "b"), ("a", "b/c"), ("a", "b", "c"), ("d/a", "d/b")]


@st.composite
def trees(draw):
    """Draws a tree.

    Returns ({file: bytes or text}, {image: masks that may be meant}, whether there is a split,
    {text that a finding must hold: its severity}).
    """
    sites = draw(st.sampled_from(SITES))
    images, masks = draw(st.sampled_from(ROLES))
    naming = draw(st.sampled_from(sorted(NAMES)))
    if not images and naming == "same":
        naming = "suffix"
    names = NAMES[naming]
    place = draw(st.sampled_from(["none", "above", "below", "lists", "inner"]))
    splits = draw(st.sampled_from(SPLITS)) if place != "none" else ("",)
    rival = draw(st.sampled_from(["", "", "masks_old", "predictions", "labels_2", "masks_coarse"]))
    beside = draw(st.sampled_from(["", *BESIDE]))
    alone = draw(st.sampled_from(["", "z", "unlabelled"]))  # a site without masks
    letter = draw(st.sampled_from(["", "\u00e9"]))  # whose form differs in images and masks
    forms = draw(st.permutations(["NFC", "NFD"]))
    numbers = iter(range(1000)) if draw(st.booleans()) else None  # else each folder begins anew
    files, truth, lists = {}, {}, {split: [] for split in splits}
    told = {}
    for site in sites:
        for k, split in enumerate(splits):

            def path(role, site=site, split=split):
                parts = {"above": (split, site, role), "below": (site, role, split),
                         "inner": (site, split, role)}.get(place, (site, role))  # fmt: skip
                return "/".join(part for part in parts if part)

            for n in range(draw(st.integers(2, 3))):
                stem = f"{letter}{next(numbers) if numbers else n + 10 * k:03d}"
                image, mask = (
                    f"{path(role)}/{unicodedata.normalize(form, name.format(stem))}".lstrip("/")
                    for role, name, form in zip((images, masks), names, forms, strict=True)
                )
                files |= {image: "photo", mask: "mask"}
                truth[image] = {mask}
                lists[split].append(image)
                if beside and images:
                    files[f"{path(beside)}/{names[0].format(stem)}"] = BESIDE[beside]
                if rival and images:
                    other = f"{path(rival)}/{names[1].format(stem)}"
                    files[other] = "mask"
                    truth[image] |= {other} if rival == "labels_2" else set()  # old ones come last
                    told[rival] = "warning"
    if alone and images and sites[0]:
        parts = [
            splits[0] * (place == "above"),
            alone,
            splits[0] * (place == "inner"),
            images,
            splits[0] * (place == "below"),
        ]
        folder = "/".join(filter(None, parts))
        files[f"{folder}/{names[0].format('900')}"] = "photo"
        told[f"{folder}: 1 image"] = "note" if alone == "unlabelled" else "warning"
    if images and draw(st.booleans()):  # another data set
        for n in range(2):
            files |= {f"more/pics/{n}.png": "photo", f"more/annotations/{n}.png": "mask"}
            truth[f"more/pics/{n}.png"] = {f"more/annotations/{n}.png"}
    if place == "lists":
        encoding = draw(st.sampled_from(ENCODINGS))
        slash = draw(st.sampled_from("/\\"))
        for split, lines in lists.items():
            text = unicodedata.normalize("NFC", "\r\n".join(lines)).replace("/", slash)
            files[f"{split}.txt"] = text.encode(encoding)
    return files, truth, place != "none", told


@settings(max_examples=40, deadline=None, derandomize=True)
@given(trees())
def test_every_pair_is_used_or_named_and_nothing_else(tree):
    check(*tree)


@pytest.mark.slow("many more trees")
@settings(max_examples=1500, deadline=None)
@given(trees())
def test_every_pair_of_many_trees_is_used_or_named(tree):
    check(*tree)


def check(files, truth, is_split, told):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(PIXELS.get(content, content))
        layout = guess(root)
        used = {}
        for split in layout.splits:
            found = find_files(layout.data, split)
            assert {*found.stems} <= found.images.keys() & found.masks.keys(), layout
            for stem in found.stems:
                image, mask = (
                    str(Path(files[stem]).relative_to(root))
                    for files in (found.images, found.masks)
                )
                assert mask in truth[image], layout
                assert image not in used
                used[image] = split
    named = [
        int(n)
        for f in layout.findings
        for item in f.items
        for n in re.findall(r"(\d+) pairs?\b", item)
    ]
    assert len(truth) - len(used) <= sum(named), layout
    assert layout.is_split == is_split, layout
    for text, severity in told.items():
        texts = (f.title + " ".join(f.items) for f in layout.findings if f.severity == severity)
        assert any(text in told for told in texts), (text, layout)
    num_others = sum(image.startswith("more/") for image in truth)
    assert len(used) == len(truth) - num_others or (len(used), num_others) == (2, 2), layout
