import dataclasses
import io
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from deeplab_jax.data import eval_examples, open_dataset
from deeplab_jax.data.writers import archives
from deeplab_jax.data.writers.tfds import write_tfds
from deeplab_jax.errors import ConfigError, DataError, ResourceError

CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19, "folder": 4}


@pytest.fixture
def written(make_tree, data_config):
    """Returns written(dataset) -> (config.data of the folder, of its TFDS form)."""

    def make(name):
        data = data_config(name, make_tree(name))
        write_tfds(data, CLASSES[name])
        return data, data_config(name, data.root, source="tfds")

    return make


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A TFDS data directory of others: my_set/1.0.0 and 1.2.0, deep/small/2.0.0, and a TFRecord."""
    import tensorflow_datasets as tfds

    class MySet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "picture": tfds.features.Image(shape=(None, None, 3)),
                "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(num_classes=3),
                "other": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(ids="not ours"),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(12), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                rng = np.random.default_rng(i)
                mask = rng.choice([0, 10, 20, 250], (65, 97)).astype(np.uint8)
                image = np.repeat(mask[..., None], 3, 2)
                yield (
                    i,
                    {
                        "picture": io.BytesIO(cv2.imencode(".png", image)[1].tobytes()),
                        "segmentation_mask": io.BytesIO(cv2.imencode(".png", mask)[1].tobytes()),
                        "label": i % 3,
                        "other": np.zeros(2, np.float32),
                    },
                )

    root = tmp_path_factory.mktemp("foreign")
    MySet(data_dir=root, file_format="array_record").download_and_prepare()
    shutil.copytree(root / "my_set/1.0.0", root / "my_set/1.2.0")
    shutil.copytree(root / "my_set/1.0.0", root / "deep/small/2.0.0")
    shutil.copytree(root / "my_set/1.0.0", root / "records/1.0.0")
    info = root / "records/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return root


def foreign_config(data_config, root, **fields):
    options = {
        "source": "tfds",
        "tfds_name": "my_set:1.0.0",
        "image_key": "picture",
        "mask_key": "segmentation_mask",
        "class_values": (10, 20, 0),
        "ignore_values": (250,),
        "val_split": "test",
    }
    return data_config("folder", root, **(options | fields))


@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes"])
def test_tfds_gives_the_folders_samples_in_its_order(written, name):
    folder, data = written(name)
    for split in (folder.train_split, folder.val_split):
        expected = open_dataset(folder, CLASSES[name], split)
        dataset = open_dataset(data, CLASSES[name], split)
        assert (dataset.name, dataset.split, dataset.ids) == (name, split, expected.ids)
        assert dataset.class_names == expected.class_names
        for index in range(len(expected)):
            for value, other in zip(dataset.read(index), expected.read(index), strict=True):
                np.testing.assert_array_equal(value, other)
        examples = [list(eval_examples(d, range(4), (128, 80))) for d in (dataset, expected)]
        for value, other in zip(*examples, strict=True):
            np.testing.assert_array_equal(value.image, other.image)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tfds_gives_the_folders_batches(written, num_workers, read, assert_equal):
    folder, data = written("voc")
    expected = read(open_dataset(folder, 21, "trainaug"))
    assert_equal(read(open_dataset(data, 21, "trainaug"), num_workers=num_workers), expected)


def test_files_are_stored_as_they_are_in_several_shards(make_tree, data_config, monkeypatch):
    from deeplab_jax.data.writers import tfds as writer

    monkeypatch.setattr(writer, "SHARD_BYTES", 40_000)
    data = data_config("ade20k", make_tree("ade20k"))
    folder = write_tfds(data, 150)
    assert len(list(folder.glob("ade20k-train*"))) > 2
    source = open_dataset(data_config("ade20k", data.root, source="tfds"), 150, "train").source
    records, extract = source._reader
    for index, paths in enumerate(map(open_dataset(data, 150, "train").source.names, range(12))):
        example = extract(records[index])
        assert [example[key] for key in ("image", "mask")] == [Path(p).read_bytes() for p in paths]


def test_train_ids_of_cityscapes_stay_train_ids(make_tree, data_config):
    root = make_tree("cityscapes")
    data = data_config("cityscapes", root)
    folder = open_dataset(data, 19, "train")
    labels = [folder.read(index)[1] for index in range(len(folder))]
    for index, label in enumerate(labels):
        path = Path(folder.source.names(index)[1])
        assert cv2.imwrite(str(path).replace("labelIds", "labelTrainIds"), label)
        path.unlink()
    write_tfds(data, 19)
    for source in ("folder", "tfds"):
        dataset = open_dataset(data_config("cityscapes", root, source=source), 19, "train")
        for index, label in enumerate(labels):
            np.testing.assert_array_equal(dataset.read(index)[1], label)
    val = open_dataset(data_config("cityscapes", root, source="tfds"), 19, "val")  # labelIds
    np.testing.assert_array_equal(val.read(1)[1], open_dataset(data, 19, "val").read(1)[1])


def test_writing_again_changes_nothing_and_notices_changes(written):
    folder, _ = written("ade20k")
    paths = [path for path in Path(folder.root, "tfds").rglob("*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in paths}
    write_tfds(folder, 150)
    assert {path: path.stat().st_mtime_ns for path in paths} == times
    path = next(Path(folder.root).glob("ADE20k/*/annotations/training/*.png"))
    assert cv2.imwrite(str(path), np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"tfds/ade20k/1.0.0: was written from other files"):
        write_tfds(folder, 150)


def test_an_unreadable_file_leaves_nothing(make_tree, data_config):
    data = data_config("ade20k", make_tree("ade20k"))
    path = sorted(Path(data.root).glob("ADE20k/*/annotations/validation/*.png"))[2]
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{path.name}: is an empty file"):
        write_tfds(data, 150)
    assert not list(Path(data.root, "tfds").iterdir())


def test_room_is_checked_first(make_tree, data_config, monkeypatch):
    data = data_config("ade20k", make_tree("ade20k"))
    monkeypatch.setattr(archives.shutil, "disk_usage",
                        lambda path: type("Usage", (), {"free": 1000}))  # fmt: skip
    with pytest.raises(ResourceError, match="bytes are needed and 1000 are free"):
        write_tfds(data, 150)


def test_an_open_source_is_small_to_send(written):
    dataset = open_dataset(written("voc")[1], 21, "val")
    before = dataset.read(1)
    small = pickle.dumps(dataset.source)
    assert len(small) < 1000
    np.testing.assert_array_equal(pickle.loads(small).read(1)[0], before[0])


# Anyone's data sets


def test_any_data_set_can_be_named(foreign, data_config):
    data = foreign_config(data_config, foreign)
    dataset = open_dataset(data, 3, "train")
    assert dataset.ids[:2] == ("train_000000", "train_000001")
    assert len(dataset) == 12
    image, label = dataset.read(5)
    expected = np.select([image[..., 0] == v for v in (10, 20, 0)], [0, 1, 2], 255)
    np.testing.assert_array_equal(label, expected)
    assert len(open_dataset(data, 3, "test")) == 4


@pytest.mark.parametrize("place", ["my_set", "deep/small", "deep/small:2.0.0", "my_set:1.2.0"])
def test_names_with_and_without_version(foreign, data_config, place, tmp_path):
    data = foreign_config(data_config, foreign, tfds_name=place)
    version = "2.0.0" if "deep" in place else "1.2.0"
    assert open_dataset(data, 3, "train").source.folder.endswith(version)
    (tmp_path / "tfds").symlink_to(foreign)  # as ours lie
    data = dataclasses.replace(data, root=str(tmp_path))
    assert open_dataset(data, 3, "train").source.folder.endswith(version)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tfds_name": "my_sett"}, r"has no TFDS data set 'my_sett'; there are deep/small:2.0.0, "),
        ({"tfds_name": "my_set:3.0.0"}, r"no TFDS data set 'my_set:3.0.0'.*my_set:1.2.0"),
        ({"tfds_name": ""}, r"has no TFDS data set 'folder'"),
        ({"root": "nowhere"}, r"nowhere: has no TFDS data set .*there is none"),
        ({"tfds_name": "records"}, r"is tfrecord, which has no random access"),
        ({"split": "dev"}, r"has no split 'dev'; it has test, train"),
        ({"image_key": "image"}, r"'image' does not exist; image features are picture, segm"),
        ({"mask_key": "label"}, r"'label' is ClassLabel; image features are picture, segm"),
    ],
)
def test_what_is_missing_is_told_with_what_exists(foreign, data_config, fields, text):
    split = fields.pop("split", "train")
    root = fields.pop("root", foreign)
    with pytest.raises(DataError, match=text) as error:
        open_dataset(foreign_config(data_config, root, **fields), 3, split)
    assert "\n" not in str(error.value)


def test_a_malformed_name_leads_nowhere(foreign, data_config):
    for name in ("../my_set", "my_set:x", "/etc", "my_set/../deep"):
        with pytest.raises((ConfigError, DataError), match=r"is no name|has no TFDS"):
            open_dataset(foreign_config(data_config, foreign, tfds_name=name), 3, "train")


def test_a_value_without_meaning_is_an_error(foreign, data_config):
    data = foreign_config(data_config, foreign, class_values=(10, 20, 1))
    with pytest.raises(DataError, match=r"train_000000 \(segmentation_mask\): has values 0; acc"):
        open_dataset(data, 3, "train").read(0)


def test_files_of_16_bits_are_scaled_when_read(make_tree, data_config):
    root = make_tree("folder")
    for path in root.rglob("images/*/*"):
        wide = cv2.imread(str(path)).astype(np.uint16) * 16
        path.unlink()
        assert cv2.imwrite(str(path.with_suffix(".png")), wide)
    folder = data_config("folder", root, value_range=(0, 4095))
    write_tfds(folder, 4)
    data = dataclasses.replace(folder, source="tfds")
    expected = open_dataset(folder, 4, "train").read(0)[0]
    np.testing.assert_array_equal(open_dataset(data, 4, "train").read(0)[0], expected)
    data = dataclasses.replace(data, value_range=())
    with pytest.raises(DataError, match=r"\(image\): has 16 bits a channel, values up to"):
        open_dataset(data, 4, "train").read(0)


@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.95])
def test_damaged_records_are_one_line(written, kept):
    _, data = written("voc")
    (path,) = Path(data.root).glob("tfds/voc/1.0.0/voc-val*")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError, match=r"val_000000 \(image\): cannot be read") as error:
        open_dataset(data, 21, "val").read(0)
    assert "\n" not in str(error.value)


def test_damaged_info_is_one_line(written):
    _, data = written("voc")
    Path(data.root, "tfds/voc/1.0.0/dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="cannot be opened"):
        open_dataset(data, 21, "val")


def test_tensorflow_is_never_imported(written):
    _, data = written("voc")
    code = f"""
import sys
from deeplab_jax.config import get_config
from deeplab_jax.data import open_dataset
assert not {{"tensorflow_datasets", "grain", "jax"}} & sys.modules.keys()
data = get_config("voc").data
data.root, data.source = {data.root!r}, "tfds"
open_dataset(data, 21, "val").read(0)
print(sorted({{"tensorflow", "jax"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
