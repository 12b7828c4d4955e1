"""Images and masks that patterns name."""

import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax import config
from deeplab_jax.config import patterns
from deeplab_jax.data import open_dataset
from deeplab_jax.data.files import find_files
from deeplab_jax.data.images import write_png_indices
from deeplab_jax.errors import ConfigError, DataError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def pairs(root, files):
    """Returns {stem: (image, mask)} of paths under the root, None for what is missing."""
    paths = files.images, files.masks
    return {
        stem: tuple(os.path.relpath(p[stem], root) if stem in p else None for p in paths)
        for stem in files.stems
    }


def found(data_config, root, images, masks, split="train", **fields):
    data = data_config("folder", root, images=images, masks=masks, **fields)
    patterns.check(data.images, data.masks, data.mask_suffix)
    return find_files(data, split)


CASES = {
    "scenes": (("{split}/*/images_png", "{split}/*/masks_png"), {
        "Rural/images_png/0": ("train/Rural/images_png/0.png", "train/Rural/masks_png/0.png"),
        "Urban/images_png/d/0": ("train/Urban/images_png/d/0.jpg", "train/Urban/masks_png/d/0.tif"),
    }),
    "regions": (("{a,b c}/images/{split}", "{a,b c}/labels/{split}"), {
        "a/images/train/1": ("a/images/train/1.jpg", "a/labels/train/1.png"),
        "b c/images/train/1": ("b c/images/train/1.jpg", "b c/labels/train/1.png"),
    }),
    "any depth": (("**/images", "**/labels"), {
        "images/0": ("images/0.jpg", "labels/0.png"),
        "x/images/0": ("x/images/0.jpg", "x/labels/0.png"),
        "x/y/images/0": ("x/y/images/0.JPG", "x/y/labels/0.png"),
    }),
    "paths in braces": (("{a/x,b}/i", "{a/x,b}/m"), {
        "a/x/i/0": ("a/x/i/0.jpg", "a/x/m/0.png"), "b/i/0": ("b/i/0.jpg", "b/m/0.png"),
    }),
    "masks in folders of images": (("{split}/*", "{split}/*/masks"), {
        "s/0": ("train/s/0.png", "train/s/masks/0.png"),
        "t/u/0": ("train/t/u/0.png", "train/t/masks/u/0.png"),
    }),
    "one folder, photographs": (("*/{split}", "*/{split}"), {
        "s/train/0": ("s/train/0.jpg", "s/train/0.png"),
    }),
    "names": (("*_rgb.png", "*_label.png"), {
        "0_rgb": ("0_rgb.png", "0_label.png"), "1_rgb": ("1_rgb.PNG", "1_label.png"),
    }),
    "names within names": (("{split}/*.*", "{split}/*_mask.*"), {
        "0": ("train/0.png", "train/0_mask.png"), "a_1": ("train/a_1.JPG", "train/a_1_mask.tif"),
    }),
    "names of roads": (("{split}/image_2/um_*.png", "{split}/gt/um_road_*.png"), {
        "um_000000": ("train/image_2/um_000000.png", "train/gt/um_road_000000.png"),
    }),
    "names at any depth": (("**/i/*.png", "**/m/*_L.png"), {
        "x/y/i/0": ("x/y/i/0.png", "x/y/m/0_L.png"), "i/0": ("i/0.png", "m/0_L.png"),
    }),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wildcards_stand_for_the_same(data_config, tmp_path, case):
    (images, masks), expected = CASES[case]
    touch(tmp_path, *(name for pair in expected.values() for name in pair))
    touch(tmp_path, "train/.hidden/images_png/0.png", "README.md", "val/z.gif")
    assert pairs(tmp_path, found(data_config, tmp_path, images, masks)) == expected


def test_suffixes_of_masks_count_in_folders(data_config, tmp_path):
    touch(tmp_path, "a/0.png", "a/0_m.png", "b/0.png", "b/0_m.png", "b/0_m.jpg")
    files = found(data_config, tmp_path, "*", "*", mask_suffix="_m")
    assert pairs(tmp_path, files) == {f"{x}/0": (f"{x}/0.png", f"{x}/0_m.png") for x in "ab"}
    assert files.folders == {str(tmp_path / x) for x in "ab"}


def test_lone_images_and_masks_are_listed(data_config, tmp_path):
    touch(tmp_path, "s/i/0.jpg", "t/m/1.png", "t/i/2.jpg", "t/m/2.png")
    files = found(data_config, tmp_path, "*/i", "*/m")
    assert pairs(tmp_path, files) == {
        "s/i/0": ("s/i/0.jpg", None), "t/i/1": (None, "t/m/1.png"),
        "t/i/2": ("t/i/2.jpg", "t/m/2.png"),
    }  # fmt: skip
    data = data_config("folder", tmp_path, images="*/i", masks="*/m")
    with pytest.raises(DataError, match=r"as \S+/t/i/1\.jpg \(or .*\) and \S+/s/m/0\.png \(or"):
        open_dataset(data, 4, "train")


def test_a_pattern_reads_and_takes_lists(data_config, tmp_path):
    for path in ("s/i/0.png", "s/m/0.png", "t/i/0.png", "t/m/0.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        label = np.full((4, 6), path[0] == "t", np.uint8)
        write_png_indices(tmp_path / path, label, np.zeros((2, 3), np.uint8))
    (tmp_path / "train.txt").write_text("t/i/0\n")
    data = data_config("folder", tmp_path, images="*/i", masks="*/m", split_file="{split}.txt")
    dataset = open_dataset(data, 4, "train")
    assert dataset.ids == ("t/i/0",)
    assert dataset.read(0)[1].all()


@pytest.mark.parametrize(
    ("images", "masks", "error"),
    [
        ("*/images", "*/m", r"\*/images: no folders match; .* are s/i, s/m - correct --config"),
        ("*_rgb.png", "*_gt.png", r"no files match; files .* are s/i/a\.jpg, s/m/a\.png"),
        ("{split}/i", "{split}/m", r"train/i: is not a folder"),
        ("*/i/{split}.*", "*/m/{split}.*", r"no split 'train'; there are a - .*train_split=a"),
        ("{s,t}/i", "{s,t}/m", r"\{s,t\}/i: nothing matches with t - correct --config"),
        ("*/i", "*/masks", r"\*/masks: no folders match"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_named(data_config, tmp_path, images, masks, error):
    touch(tmp_path, "s/i/a.jpg", "s/m/a.png")
    with pytest.raises(DataError, match=error):
        found(data_config, tmp_path, images, masks)


def test_texts_in_braces_may_lack_a_split(data_config, tmp_path):
    touch(tmp_path, "a/i/train/0.png", "a/m/train/0.png", "b/i/val/0.png", "b/m/val/0.png")
    for split, name in (("train", "a"), ("val", "b")):
        files = found(data_config, tmp_path, "{a,b}/i/{split}", "{a,b}/m/{split}", split)
        assert files.stems == [f"{name}/i/{split}/0"]


def test_one_name_twice_is_refused(data_config, tmp_path):
    touch(tmp_path, "s/i/a.jpg", "s/m/a.png")
    for twin in ("s/i/a.png", "s/m/a.tif"):
        touch(tmp_path, twin)
        with pytest.raises(DataError, match=rf"{twin}: has the same name as .*/{twin[:4]}a"):
            found(data_config, tmp_path, "*/i", "*/m")
        (tmp_path / twin).unlink()
    touch(tmp_path, "s/m/a.jpg")  # a lossy mask beside another does no harm
    assert found(data_config, tmp_path, "*/i", "*/m").masks["s/i/a"].endswith("a.png")


def test_links_are_followed_within_the_root_alone(data_config, tmp_path):
    root = tmp_path / "root"
    touch(root, "pool/i/a.png", "pool/m/a.png")
    touch(tmp_path, "outside/i/b.png")
    (root / "s").symlink_to("pool")
    (root / "README.md").symlink_to(tmp_path / "outside/i/b.png")  # no pattern names it
    assert found(data_config, root, "{s,pool}/i", "{s,pool}/m").stems == ["pool/i/a", "s/i/a"]
    (root / "t").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"root/t: is a link that leads out"):
        found(data_config, root, "*/i", "*/m")


@pytest.mark.parametrize(
    ("images", "masks", "suffix", "error"),
    [
        ("*/i", "m", "", r"masks: holds 0 wildcards \(none\), and config.data.images 1 \(\*\)"),
        ("{a,b}/*/i", "**/m", "", r"holds 1 wildcards \(\*\*\), .* 2 \(\{a,b\} \*\)"),
        ("*.png", "*/m", "", "masks names folders, and config.data.images=.*png files"),
        ("*.png", "*_m.*", "_m", "mask_suffix: is '_m'"),
        ("{spilt}/i", "{split}/m", "", r"images: .* mean nothing \(\{spilt\}\) - write \{split\}"),
        ("i", "{a,}/m", "", r"masks: .*mean nothing \(\{a,\}\)"),
        ("{a,b*}/i", "{a,b}/m", "", "mean nothing"),
        ("{a,b/i", "m", "", "mean nothing - "),
        ("a**/i", "**/m", "", r"images: a\*\*/i holds \*\* within a part"),
        ("../*/i", "*/m", "", "leaves the root - name a folder above"),
        ("/x/*/i", "*/m", "", "leaves the root"),
        ("{..,b}/i", "{a,b}/m", "", "leaves the root"),
    ],
)  # fmt: skip
def test_patterns_that_contradict_are_refused(images, masks, suffix, error):
    c = config.get_config("folder")
    c.data.images, c.data.masks, c.data.mask_suffix = images, masks, suffix
    c.data.split_file = "{split}.txt"
    error = error.replace("masks names", r"\*/m names")
    with pytest.raises(ConfigError, match=error):
        config.validate(c)


def reference(root, images, masks):
    """Joins the files of two patterns by regular expressions over all paths."""

    def keys(pattern):
        text = re.escape(pattern).replace(r"\*\*/", "(?:(.+)/)?").replace(r"\*", "([^/]*)")
        text = re.sub(r"\\{(\w+),(\w+)\\}", r"(\1|\2)", text)
        paths = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        matches = ((path, re.fullmatch(text, path)) for path in paths)
        return {tuple(g or "" for g in m.groups()): path for path, m in matches if m}

    one, other = keys(images), keys(masks)
    return {(one[k], other[k]) for k in one.keys() & other.keys()}, one.keys() ^ other.keys()


PARTS = st.sampled_from(["*", "a", "a*", "{a,b}", "**"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(PARTS, max_size=3),
    st.sets(st.lists(st.sampled_from(["a", "b", "ab"]), max_size=3).map(tuple), min_size=1),
    st.data(),
)
def test_joined_as_by_plain_expressions(tmp_path_factory, parts, folders, data):
    root = tmp_path_factory.mktemp("tree")
    for folder in folders:
        for end in data.draw(st.sets(st.sampled_from(["i.jpg", "m.png", "x.gif"]))):
            touch(root, "/".join((*folder, f"0_{end}")))
    images, masks = ("/".join((*parts, end)) for end in ("*_i.jpg", "*_m.png"))
    expected, alone = reference(root, images, masks)
    fields = {"root": str(root), "images": images, "masks": masks, "val_split": "train"}
    c = config.get_config("folder")
    c.data.update(fields)
    told, got = "", {}
    try:
        got = pairs(root, find_files(config.freeze(c).data, "train"))
    except DataError as error:
        told = error.what
    if told:
        assert "nothing matches with" in told or not expected
        return
    whole = {pair for pair in got.values() if None not in pair}
    assert whole == expected
    assert len(got) == len(expected) + len(alone)
