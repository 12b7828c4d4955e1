import io
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from deeplab_jax.config import get_config
from deeplab_jax.config.recipe import apply_overrides, load_recipe
from deeplab_jax.data import open_dataset
from deeplab_jax.data.images import read_label
from deeplab_jax.data.writers import archives
from deeplab_jax.data.writers.official import OFFICIAL
from deeplab_jax.errors import DataError

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
VOC_TAR, SBD_TGZ = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"


@pytest.fixture
def prepare(call):
    """Returns prepare(*argv) -> Outcome of the command, which tells an error in one line."""

    def prepare(*argv):
        outcome = call("prepare", *argv)
        assert "Traceback" not in outcome.err
        return outcome._replace(err=outcome.err.strip())

    return prepare


@pytest.fixture
def downloads(tmp_path):
    """Returns a function from a data set's name to a folder of its official archives, tiny."""

    def make(name):
        return _MAKERS[name](_folder(tmp_path / "downloads"))

    return make


def _folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(path, array):
    _folder(path.parent)
    assert cv2.imwrite(str(path), array)


def draw(seed, high, size=(9, 12)):
    return np.random.default_rng(seed).integers(0, high, size, np.uint8)


def make_voc(folder):
    """VOC: train a b, val c d; SBD: train a e c, val f d. trainaug: a b e f."""
    top = folder / "VOCdevkit" / "VOC2012"
    lists = _folder(top / "ImageSets" / "Segmentation")
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\nd\n")
    for seed, name in enumerate("abcdefg"):  # g is in no list
        write(top / "JPEGImages" / f"{name}.jpg", draw(seed, 256, (9, 12, 3)))
        if name in "abcd":
            write(top / "SegmentationClass" / f"{name}.png", draw(seed, 21))
            write(top / "SegmentationObject" / f"{name}.png", draw(seed, 21))
    sbd = folder / "benchmark_RELEASE" / "dataset"
    _folder(sbd / "cls")
    (sbd / "train.txt").write_text("a\ne\nc\n")
    (sbd / "val.txt").write_text("f\nd\n")
    for seed, name in enumerate("acdef"):
        label = np.minimum(draw(100 + seed, 21), 20)
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": label, "Boundaries": [1]}},
                do_compression=True)  # fmt: skip
    with tarfile.open(folder / VOC_TAR, "w") as tar:
        tar.add(folder / "VOCdevkit", "VOCdevkit")
    with tarfile.open(folder / SBD_TGZ, "w:gz") as tar:
        tar.add(folder / "benchmark_RELEASE", "benchmark_RELEASE")
    return folder


def make_ade20k(folder):
    top = folder / "ADEChallengeData2016"
    for split, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            write(top / "images" / split / f"ADE_{split}_{i}.jpg", draw(i, 256, (9, 12, 3)))
            write(top / "annotations" / split / f"ADE_{split}_{i}.png", draw(i, 151))
    (top / "objectInfo150.txt").write_text("Idx\n")
    _zip(folder, "ADEChallengeData2016.zip", "ADEChallengeData2016")
    return folder


def make_cityscapes(folder, kinds=("labelIds", "labelTrainIds")):
    ids = np.zeros(256, np.uint8)
    ids[:19] = CITYSCAPES_IDS
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            stem = f"{split}/ulm/ulm_{i:06d}_000019"
            write(folder / "leftImg8bit" / f"{stem}_leftImg8bit.png", draw(i, 256, (9, 12, 3)))
            train_ids = draw(i, 20)
            train_ids[train_ids == 19] = 255
            files = {"labelIds": ids[train_ids], "labelTrainIds": train_ids, "color": train_ids}
            for kind in (*kinds, "color"):
                write(folder / "gtFine" / f"{stem}_gtFine_{kind}.png", files[kind])
    _zip(folder, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    _zip(folder, "gtFine_trainvaltest.zip", "gtFine")
    return folder


def _zip(folder, name, top):
    with zipfile.ZipFile(folder / name, "w") as file:
        for path in sorted((folder / top).rglob("*")):
            file.write(path, path.relative_to(folder))


_MAKERS = {"voc": make_voc, "ade20k": make_ade20k, "cityscapes": make_cityscapes}
_COUNTS = {"voc": "4,2", "ade20k": "3,2", "cityscapes": "3,2"}


def keep_archives(folder):
    """Removes the folders that the archives were made of."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def keep_folders(folder):
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def opened(name, root, split):
    config = apply_overrides(get_config(name), [f"--config.data.root={root}"])
    return open_dataset(config.data, config.model.num_classes, split)


def hashes(root):
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("name", _MAKERS)
@pytest.mark.parametrize("keep", [keep_archives, keep_folders])
def test_archives_or_their_folders_become_the_layout(prepare, downloads, tmp_path, name, keep):
    folder, root = downloads(name), tmp_path / "data"
    keep(folder)
    argv = (name, "--archives", folder, "--output", root, "--expect-counts", _COUNTS[name])
    code, out, err = prepare(*argv)
    assert (code, err) == (0, "")
    assert f"{name}: complete\nresults: {root}/" in out
    recipe = out.partition("next: deeplab doctor --config ")[2].split()[0]
    assert out.endswith(f" {recipe} --config.data.root={root}  # opens every file\n")
    config = load_recipe(recipe)
    assert config.data.dataset == name
    for split, count in zip(
        (config.data.train_split, config.data.val_split), _COUNTS[name].split(","), strict=True
    ):
        dataset = opened(name, root, split)
        assert len(dataset) == int(count)
        for index in range(len(dataset)):
            dataset.read(index)
    assert not [path for path in root.rglob("*") if "partial" in path.name or "Object" in str(path)]
    # Again, without the archives: checked, and not written.
    before = hashes(root)
    shutil.rmtree(folder)
    code, out, _ = prepare(*argv)
    assert code == 0
    assert "left as it is" in out
    assert hashes(root) == before


def test_voc_and_sbd_are_merged(prepare, downloads, tmp_path):
    folder, root = downloads("voc"), tmp_path / "data"
    assert prepare("voc", "--archives", folder, "--output", root, "--expect-counts", "4,2")[0] == 0
    assert opened("voc", root, "trainaug").ids == ("a", "b", "e", "f")
    assert opened("voc", root, "val").ids == ("c", "d")
    masks = root / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    for seed, name in enumerate("abcd"):  # VOC's own where both exist
        np.testing.assert_array_equal(read_label(masks / f"{name}.png"), draw(seed, 21))
    for seed, name in ((3, "e"), (4, "f")):
        np.testing.assert_array_equal(read_label(masks / f"{name}.png"), draw(100 + seed, 21))
    assert not (masks / "g.png").exists()


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"GTcls": {"Segmentation": np.full((9, 12), 21, np.uint8)}}, "values up to 21"),
        ({"GTcls": {"Other": np.zeros((9, 12), np.uint8)}}, "has no GTcls.Segmentation"),
        ({"GTinst": {"Segmentation": np.zeros((9, 12), np.uint8)}}, "has no GTcls.Segmentation"),
        (b"MATLAB 5.0 MAT-file", "has no GTcls.Segmentation"),
        (None, "1 masks of its lists are missing (f)"),
    ],
)
def test_bad_sbd_masks_are_named(prepare, downloads, tmp_path, value, what):
    folder = downloads("voc")
    path = folder / "benchmark_RELEASE" / "dataset" / "cls" / "f.mat"
    path.unlink()
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif value:
        savemat(path, value)
    keep_folders(folder)
    code, _, err = prepare(
        "voc", "--archives", folder, "--output", tmp_path, "--expect-counts", "4,2"
    )
    assert code == 3
    assert what in err
    assert err.startswith("error: sbd/cls")
    assert not (tmp_path / "VOCdevkit").exists()


@pytest.mark.parametrize("name", _MAKERS)
def test_another_count_is_an_error_and_leaves_nothing(prepare, downloads, tmp_path, name):
    root = tmp_path / "data"
    code, _, err = prepare(name, "--archives", downloads(name), "--output", root)
    assert code == 3
    published = OFFICIAL[name].counts
    assert f"images, not {published[0]} - " in err
    assert "\n" not in err
    assert not list(root.iterdir())


def test_what_is_there_and_incomplete_is_left_alone(prepare, downloads, tmp_path):
    folder = downloads("voc")  # holds VOC2012 as it is unpacked, without trainaug
    before = hashes(folder)
    argv = ("--archives", folder, "--expect-counts", "4,2", "--output")
    code, _, err = prepare("voc", *argv, folder)
    assert code == 3
    assert "trainaug.txt" in err
    assert f"or move {folder}/VOCdevkit/VOC2012 away" in err
    assert hashes(folder) == before
    assert prepare("voc", *argv, tmp_path / "data")[0] == 0


def test_published_counts():
    counts = {name: official.counts for name, official in OFFICIAL.items()}
    assert counts == {"voc": (10582, 1449), "ade20k": (20210, 2000), "cityscapes": (2975, 500)}


def test_missing_archives_are_all_named(prepare, tmp_path):
    code, _, err = prepare("voc", "--archives", tmp_path, "--output", tmp_path / "data")
    assert code == 3
    assert VOC_TAR in err
    assert SBD_TGZ in err


# Cityscapes


def test_cityscapes_kinds_of_masks_must_agree(prepare, downloads, tmp_path):
    folder = downloads("cityscapes")
    path = folder / "gtFine/val/ulm/ulm_000001_000019_gtFine_labelTrainIds.png"
    label = read_label(path)
    label[3, 4] = 0 if label[3, 4] else 1
    write(path, label)
    keep_folders(folder)
    argv = ("cityscapes", "--archives", folder, "--output", tmp_path, "--expect-counts", "3,2")
    code, _, err = prepare(*argv)
    assert code == 3
    name = "CityScapes/gtFine/val/ulm/ulm_000001_000019_gtFine_labelTrainIds.png"
    assert err.startswith(f"error: {name}: contradicts ulm_000001_000019_gtFine_labelIds.png")


@pytest.mark.parametrize(("kind", "value"), [("labelIds", 255), ("labelTrainIds", 19)])
def test_cityscapes_values_must_be_of_the_suffix(prepare, tmp_path, kind, value):
    folder, root = _folder(tmp_path / "downloads"), tmp_path / "data"
    make_cityscapes(folder, (kind,))
    argv = ("cityscapes", "--archives", folder, "--output", root, "--expect-counts", "3,2")
    assert prepare(*argv)[0] == 0
    read = opened("cityscapes", root, "train").read(0)
    train_ids = draw(0, 20)
    np.testing.assert_array_equal(read[1], np.where(train_ids == 19, 255, train_ids))
    path = root / f"CityScapes/gtFine/train/ulm/ulm_000000_000019_gtFine_{kind}.png"
    write(path, np.full((9, 12), value, np.uint8))
    code, _, err = prepare(*argv)  # what is there is checked
    assert code == 3
    assert f"{path}: has values {value}; accepted are" in err
    with pytest.raises(DataError, match=f"has values {value}"):
        opened("cityscapes", root, "train").read(0)


# Safety


def hostile_tar(path, **attributes):
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("VOCdevkit/VOC2012/JPEGImages/a.jpg")
        info.size = 3
        for key, value in attributes.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(b"abc") if info.isreg() else None)


def hostile_zip(path, name, mode=0):
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        file.writestr(info, "/etc/passwd")


HOSTILE = {
    "parent": lambda path: hostile_tar(path, name="VOCdevkit/VOC2012/JPEGImages/../../../../x.jpg"),
    "absolute": lambda path: hostile_tar(path, name="/tmp/VOC2012/JPEGImages/x.jpg"),
    "symlink": lambda path: hostile_tar(path, type=tarfile.SYMTYPE, linkname="/etc", size=0),
    "symlink inside": lambda path: hostile_tar(path, type=tarfile.SYMTYPE, linkname="b", size=0),
    "hardlink": lambda path: hostile_tar(path, type=tarfile.LNKTYPE, linkname="../../x", size=0),
    "device": lambda path: hostile_tar(path, type=tarfile.CHRTYPE, size=0),
    "fifo": lambda path: hostile_tar(path, type=tarfile.FIFOTYPE, size=0),
    "zip parent": lambda path: hostile_zip(path, "a/../../VOC2012/JPEGImages/x.jpg"),
    "zip absolute": lambda path: hostile_zip(path, "/VOC2012/JPEGImages/x.jpg"),
    "zip symlink": lambda path: hostile_zip(path, "VOC2012/JPEGImages/x.jpg", stat.S_IFLNK | 0o777),
    "zip fifo": lambda path: hostile_zip(path, "VOC2012/JPEGImages/x.jpg", stat.S_IFIFO | 0o600),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_write_nothing(prepare, downloads, tmp_path, kind):
    folder, root = downloads("voc"), tmp_path / "in" / "data"
    HOSTILE[kind](folder / VOC_TAR)
    code, _, err = prepare("voc", "--archives", folder, "--output", root)
    assert code == 3
    assert "its member" in err
    outside = "would be written outside" if kind.split()[-1] in ("parent", "absolute") else "link"
    assert outside in err
    assert not list(root.iterdir())
    assert [path.name for path in root.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("name", [VOC_TAR, SBD_TGZ, "ADEChallengeData2016.zip"])
@pytest.mark.parametrize("kept", [0, 0.1, 0.6])
def test_damaged_archives_are_named(prepare, downloads, tmp_path, name, kept):
    dataset = "ade20k" if name.endswith("zip") else "voc"
    path = downloads(dataset) / name
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    root = tmp_path / "data"
    code, _, err = prepare(dataset, "--archives", path.parent, "--output", root)
    assert code == 3
    assert f"{name}: is damaged or cut short" in err
    assert "\n" not in err
    assert "method" not in err  # of tarfile, which would try its five on a ZIP
    assert not list(root.iterdir())


@pytest.mark.parametrize("name", [VOC_TAR, "ADEChallengeData2016.zip"])
def test_a_page_in_place_of_an_archive_is_one_line(prepare, downloads, tmp_path, name):
    dataset = "ade20k" if name.endswith("zip") else "voc"
    path = downloads(dataset) / name
    path.write_text("<html>please log in\n" * 100)
    code, _, err = prepare(dataset, "--archives", path.parent, "--output", tmp_path / "data")
    assert code == 3
    assert f"{path}: is damaged or cut short (file could not be opened successfully; " in err
    assert "it starts with b'<html>please') - download it again" in err
    assert "\n" not in err


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_headers_are_read_before_a_data_set_is_complete(prepare, downloads, tmp_path, kind):
    folder, root = downloads("ade20k"), tmp_path / "data"
    keep_folders(folder)
    path = next((folder / "ADEChallengeData2016" / kind / "validation").iterdir())
    if kind == "images":
        path.write_text("<html>")
    else:
        write(path, draw(0, 151, (9, 13)))
    argv = ("ade20k", "--archives", folder, "--output", root, "--expect-counts", "3,2")
    code, out, err = prepare(*argv)
    assert code == 3
    what = {"images": "looks like an HTML page", "annotations": "is 9 x 13 pixels, but its image"}
    assert f"{path.name}: {what[kind]}" in err
    assert "complete" not in out
    assert not list(root.iterdir())


def test_a_changed_byte_in_a_zip_is_found(prepare, downloads, tmp_path):
    path = downloads("ade20k") / "ADEChallengeData2016.zip"
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 60] ^= 1
    path.write_bytes(data)
    code, _, err = prepare("ade20k", "--archives", path.parent, "--output", tmp_path / "data")
    assert code == 3
    assert "ADEChallengeData2016.zip: is damaged" in err


def test_too_small_a_disk_is_told_before_writing(prepare, downloads, tmp_path, monkeypatch):
    folder, root = downloads("ade20k"), tmp_path / "data"
    hostile = folder / "ADEChallengeData2016.zip"
    with zipfile.ZipFile(hostile, "w", zipfile.ZIP_DEFLATED) as file:  # 200 kB hold 200 MB
        for i in range(4):
            name = f"ADEChallengeData2016/images/training/{i}.jpg"
            file.writestr(name, bytes(50 << 20))
    usage = shutil.disk_usage(tmp_path)._replace(free=150 << 20)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    code, _, err = prepare("ade20k", "--archives", folder, "--output", root)
    assert code == 5
    assert f"{200 << 20} bytes are needed and {150 << 20} are free" in err
    assert not list(root.iterdir())


def test_a_killed_run_is_not_taken_for_complete(prepare, downloads, tmp_path):
    folder, root = downloads("ade20k"), tmp_path / "data"
    argv = ["ade20k", "--archives", folder, "--output", root, "--expect-counts", "3,2"]
    code = """
import time
from deeplab_jax import cli
from deeplab_jax.data.writers import archives
write = archives.shutil.copyfileobj
def slow(*args):
    write(*args); print("written", flush=True); time.sleep(60)
archives.shutil.copyfileobj = slow
cli.main()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, "prepare", *map(str, argv)], stdout=subprocess.PIPE
    )
    assert any(b"written" in line for line in child.stdout)  # else it ended before
    assert prepare(*argv)[2].endswith("is being written by another process - wait for it to end")
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [path.name for path in root.iterdir()] == [".ADE20k.ADEChallengeData2016.partial"]
    with pytest.raises(DataError):
        opened("ade20k", root, "train")
    assert prepare(*argv)[0] == 0
    assert [path.name for path in root.iterdir()] == ["ADE20k"]


# TFDS


def test_tfds_is_written_beside_the_folder_and_once(prepare, downloads, tmp_path):
    folder, root = downloads("ade20k"), tmp_path / "data"
    argv = ("ade20k", "--archives", folder, "--output", root, "--format", "tfds", "--expect-counts",
            "3,2")  # fmt: skip
    code, out, err = prepare(*argv)
    assert (code, err) == (0, "")
    assert f"results: {root}/tfds/ade20k/1.0.0  # read with --config.data.source=tfds\n" in out
    before = hashes(root)
    assert prepare(*argv)[0] == 0
    assert hashes(root) == before
    overrides = [f"--config.data.root={root}", "--config.data.source=tfds"]
    config = apply_overrides(get_config("ade20k"), overrides)
    assert open_dataset(config.data, 150, "val").ids == opened("ade20k", root, "val").ids
