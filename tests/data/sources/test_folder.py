import cv2
import numpy as np
import pytest

from deeplab_jax.data import open_dataset

CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19, "folder": 4}
VOC = "VOCdevkit/VOC2012"
ADE = "ADE20k/ADEChallengeData2016"


def test_ids_and_paths_follow_the_official_names(make_tree, data_config):
    root = make_tree("voc")
    voc = open_dataset(data_config("voc", root), 21, "val")
    assert voc.ids[1] == "val_000001"
    assert voc.source.image_paths[1] == str(root / VOC / "JPEGImages/val_000001.jpg")
    assert voc.source.label_paths[1] == str(root / VOC / "SegmentationClass/val_000001.png")

    root = make_tree("ade20k")
    ade20k = open_dataset(data_config("ade20k", root), 150, "train")
    assert ade20k.source.image_paths[0] == str(
        root / ADE / "images/training/ADE_train_00000000.jpg"
    )
    assert ade20k.source.label_paths[0] == str(
        root / ADE / "annotations/training/ADE_train_00000000.png"
    )

    root = make_tree("cityscapes")
    city = open_dataset(data_config("cityscapes", root), 19, "val")
    assert city.ids[0] == "aachen/aachen_000000_000019_leftImg8bit"
    top = root / "CityScapes"
    assert city.source.image_paths[0] == str(top / f"leftImg8bit/val/{city.ids[0]}.png")
    label = "gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png"
    assert city.source.label_paths[0] == str(top / label)
    assert list(city.ids) == sorted(city.ids)


@pytest.mark.parametrize(
    ("name", "list_file", "ids"),
    [
        ("voc", f"{VOC}/ImageSets/Segmentation/val.txt", ["val_000002", "val_000000"]),
        ("ade20k", f"{ADE}/val.txt", ["ADE_val_00000003", "ADE_val_00000001"]),
        ("cityscapes", "CityScapes/val.txt", ["bochum/bochum_000001_000019_leftImg8bit"]),
    ],
)
def test_list_file_says_which_samples_in_which_order(make_tree, data_config, name, list_file, ids):
    root = make_tree(name)
    (root / list_file).write_text("\n".join(ids) + "\r\n\n")
    assert open_dataset(data_config(name, root), CLASSES[name], "val").ids == tuple(ids)


def test_voc_needs_its_list(make_tree, data_config, open_error):
    root = make_tree("voc")
    message = open_error(data_config("voc", root), 21, "train")
    assert message.startswith(f"{root / VOC}/ImageSets/Segmentation/train.txt: is missing")


def test_folder_is_sorted_and_takes_any_case_but_no_hidden_files(make_tree, data_config):
    root = make_tree("folder", num_train=3)
    images = root / "images" / "train"
    (images / "002.jpg").rename(images / "002.JPG")
    (images / "._000.jpg").write_bytes(b"")
    (images / "notes.txt").write_text("x")
    cv2.imwrite(str(images / "001.png"), cv2.imread(str(images / "001.jpg")))
    (images / "001.jpg").unlink()
    dataset = open_dataset(data_config("folder", root), 4, "train")
    assert dataset.ids == ("000", "001", "002")
    assert [path.rsplit(".")[-1] for path in dataset.source.image_paths] == ["jpg", "png", "JPG"]


def test_missing_files_are_counted_in_one_error(make_tree, data_config, open_error):
    root = make_tree("voc")
    for i in range(11):
        (root / VOC / "SegmentationClass" / f"train_{i:06d}.png").unlink()
    (root / VOC / "JPEGImages" / "train_000003.jpg").unlink()
    message = open_error(data_config("voc", root), 21, "trainaug")
    assert message.startswith(
        f"{root}: split 'trainaug' of 12 samples: 1 images missing (train_000003); "
        "11 masks missing (train_000000, train_000001, "
    )
    assert "train_000009, ... (1 more)" in message


def test_folder_misses_what_has_only_one_of_its_two_files(make_tree, data_config, open_error):
    root = make_tree("folder")
    (root / "images" / "val" / "001.jpg").unlink()
    (root / "labels" / "val" / "002.png").unlink()
    message = open_error(data_config("folder", root), 4, "val")
    assert "1 images missing (001); 1 masks missing (002)" in message


def test_ids_cannot_leave_the_root(make_tree, data_config, tmp_path, open_error):
    root = make_tree("voc")
    cv2.imwrite(str(tmp_path / "x.jpg"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((4, 4), np.uint8))
    for name in (f"../../../../{tmp_path.name}/x", str(tmp_path / "x")):
        (root / VOC / "ImageSets/Segmentation/val.txt").write_text(name)
        assert f"lists what lies outside ({name})" in open_error(
            data_config("voc", root), 21, "val"
        )


def test_empty_split_and_missing_folder_are_named(make_tree, data_config, tmp_path, open_error):
    root = make_tree("voc")
    (root / VOC / "ImageSets/Segmentation/val.txt").write_text("\n")
    assert "split 'val' has no images" in open_error(data_config("voc", root), 21, "val")
    message = open_error(data_config("folder", tmp_path), 4, "val")
    assert message.startswith(f"{tmp_path}/images/val: is not a folder")


def test_two_images_of_one_name_are_refused(make_tree, data_config, open_error):
    root = make_tree("folder")
    (root / "images" / "val" / "000.png").write_bytes(b"")
    assert "has the same name as" in open_error(data_config("folder", root), 4, "val")
