"""Published and usual layouts: each is found whole, with what is chosen and what is said."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.files import find_files
from deeplab_jax.doctor.layouts import guess
from deeplab_jax.errors import DataError


def _encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _draw(high, *channels, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, (32, 32, *channels), dtype)


_COLORS = np.random.default_rng(0).integers(0, 256, (4, 3), np.uint8)
PIXELS = {
    "photo": _encode(_draw(256, 3)),
    "mask": _encode(_draw(4)),
    "colors": _encode(_COLORS[_draw(4)]),
    "shades": _encode(_draw(256)),
    "deep": _encode(_draw(60000, dtype=np.uint16)),
}
NUMBERS = {"train": range(4), "val": range(4, 6)}


def plant(root, *places, splits=NUMBERS):
    """Writes files of "kind place"; {split}, {i}, {k} (0, 1, 0, ...), {u} (of KITTI) filled in.

    A place after "lines" is a list file and one of its lines, joined by "=".
    """
    for text in places:
        kind, place = text.split(" ", 1)
        for split, numbers in splits.items():
            for i in numbers:
                words = {"split": split, "i": f"{i:03d}", "k": i % 2, "u": ("um", "uu")[i % 2]}
                name, _, line = place.format(**words).partition("=")
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if line:
                    with path.open("a") as file:
                        file.write(f"{line}\n")
                else:
                    path.write_bytes(PIXELS[kind])


TRAIN = {"train": range(4)}
KNOWN = [  # files, fields (images, masks, mask_suffix), splits as planted, number of findings
    ("photo data/x/img_dir/{split}/{i}.jpg", "mask data/x/ann_dir/{split}/{i}.png",
     "data/x/img_dir/{split} data/x/ann_dir/{split}", NUMBERS, 0),
    ("photo {split}/img/{i}.jpg", "mask {split}/anno/{i}.png", "{split}/img {split}/anno",
     NUMBERS, 0),
    ("photo training/image_2/{i}_10.png", "mask training/semantic/{i}_10.png",
     "colors training/semantic_rgb/{i}_10.png", "deep training/instance/{i}_10.png",
     "photo testing/image_2/{i}_10.png", "training/image_2 training/semantic", TRAIN, 1),
    ("photo training/image_2/{u}_{i}.png", "colors training/gt_image_2/{u}_road_{i}.png",
     "training/image_2/{{um_,uu_}}*.* training/gt_image_2/{{um_,uu_}}road_*.*", TRAIN, 0),
    ("photo images/{split}2017/{i}.jpg", "mask stuffthingmaps/{split}2017/{i}.png",
     "images/{split} stuffthingmaps/{split}", NUMBERS, 0),
    ("photo {split}/k{k}/images_png/{i}.png", "mask {split}/k{k}/masks_png/{i}.png",
     "{split}/*/images_png {split}/*/masks_png", NUMBERS, 0),
    ("photo {split}ing/images/{i}.jpg", "mask {split}ing/v2.0/labels/{i}.png",
     "mask {split}ing/v1.2/labels/{i}.png", "deep {split}ing/v2.0/instances/{i}.png",
     "deep {split}ing/v2.0/panoptic/{i}.png", "training/images training/v2.0/labels", TRAIN, 1),
    ("photo images/10k/{split}/{i}.jpg", "mask labels/sem_seg/masks/{split}/{i}.png",
     "colors labels/sem_seg/colormaps/{split}/{i}.png",
     "colors labels/pan_seg/bitmasks/{split}/{i}.png",
     "images/10k/{split} labels/sem_seg/masks/{split}", NUMBERS, 0),
    ("photo leftImg8bit/{split}/{k}/f{i}_leftImg8bit.png",
     "mask gtFine/{split}/{k}/f{i}_gtFine_labelids.png",
     "deep gtFine/{split}/{k}/f{i}_gtFine_instanceids.png",
     "leftImg8bit/{split}/**/*_leftImg8bit.* gtFine/{split}/**/*_gtFine_labelids.*", NUMBERS, 0),
    ("photo VOC2010/JPEGImages/{i}.jpg", "mask VOC2010/SegmentationClassContext/{i}.png",
     "lines VOC2010/ImageSets/SegmentationContext/{split}.txt={i}",
     "VOC2010/JPEGImages VOC2010/SegmentationClassContext", NUMBERS, 0),
    ("photo {split}/images/{i}.jpg", "colors {split}/masks/{i}.bmp", "{split}/images {split}/masks",
     {"train_val": range(4), "TEST": range(4, 6)}, 0),
    ("photo 2_Ortho_RGB/top_2_{i}_RGB.tif", "photo 3_Ortho_IRRG/top_2_{i}_IRRG.tif",
     "colors 5_Labels/top_2_{i}_label.tif", "2_Ortho_RGB/*_RGB.* 5_Labels/*_label.*", TRAIN, 2),
    ("photo 701_StillsRaw_full/a_{i}.png", "colors LabeledApproved_full/a_{i}_L.png",
     "701_StillsRaw_full LabeledApproved_full _L", TRAIN, 0),
    ("photo d{k}/img/{i}.jpg", "mask d{k}/masks_machine/{i}.jpg.png",
     "colors d{k}/masks_human/{i}.jpg.png", "*/img */masks_machine .jpg", TRAIN, 0),
    ("photo JPEGImages/{i}.jpg", "mask SegmentationClassPNG/{i}.png",
     "photo SegmentationClassVisualization/{i}.jpg", "JPEGImages SegmentationClassPNG", TRAIN, 0),
    ("photo {split}/x{i}.jpg", "mask {split}/x{i}_mask.png", "{split} {split} _mask",
     {"train": range(4), "valid": range(4, 6)}, 0),
    ("photo {split}/images/{i}_{split}.tif", "mask {split}/1st_manual/{i}_manual1.png",
     "{split}/images/*_{split}.* {split}/1st_manual/*_manual1.*",
     {"training": range(4), "test": range(4, 6)}, 0),
    ("photo {split}/{i}_sat.jpg", "colors {split}/{i}_mask.png", "{split}/*_sat.* {split}/*_mask.*",
     NUMBERS, 0),
    ("photo images/img_{i}.jpg", "mask masks/mask_{i}.png", "images/img_*.* masks/mask_*.*",
     TRAIN, 0),
    ("photo f{i}_rgb.png", "mask f{i}_label.png", "deep f{i}_depth.png", "*_rgb.* *_label.*",
     TRAIN, 1),
    ("photo s{i}/image.png", "mask s{i}/label.png", "photo s{i}/label_viz.png",
     "**/image.* **/label.*", TRAIN, 0),
    ("photo a/{i}.png", "mask b/{i}.png", "a b", TRAIN, 0),
    ("photo d/{i}.tif", "mask d/{i}.png", "d/*.tif d/*.png", TRAIN, 0),
    ("photo {i}.jpg", "mask {i}_1stHO.png", "mask {i}_2ndHO.png", "*.jpg *_1stHO.*", TRAIN, 1),
    ("photo images/{split}_{i}.jpg", "mask labels/{split}_{i}.png",
     "images/{split}_*.* labels/{split}_*.*", NUMBERS, 0),
    ("photo images/{split}/{i}.jpg", "mask labels/{i}.png", "images/{split} labels", NUMBERS, 0),
    ("photo {split}/images/P{i}.png", "mask {split}/Semantic_masks/P{i}_instance_color_RGB.png",
     "colors {split}/Instance_masks/P{i}_instance_id_RGB.png",
     "{split}/images {split}/Semantic_masks _instance_color_RGB", NUMBERS, 0),
    ("photo images/{i}.jpg", "mask labels/{i}.png", "lines f0_{split}.txt={i}",
     "lines f1_{split}.txt={i}", "images labels", NUMBERS, 1),
    ("photo images/{i}.jpg", "mask labels/{i}.png",
     "lines splits/{split}_list.txt=images\\{i}.jpg labels\\{i}.png", "images labels", NUMBERS, 0),
    ("photo uavid_{split}/seq{i}/Images/0{k}.png", "colors uavid_{split}/seq{i}/Labels/0{k}.png",
     "uavid_{{split}}/*/Images uavid_{{split}}/*/Labels", NUMBERS, 0),
    ("photo site{i}_{split}/images/0{k}.png", "mask site{i}_{split}/labels/0{k}.png",
     "*{{split}}/images *{{split}}/labels", NUMBERS, 0),
    ("photo {split}/img/{i}.png", "mask {split}/gt/{i}.png", "{split}/img {split}/gt",
     {"train": range(4), "holdout": range(4, 6)}, 0),
    ("photo hha/{i}.png", "photo rgb/{i}.png", "mask label/{i}.png", "rgb label", TRAIN, 1),
    ("photo seg/images/{split}/{i}.jpg", "mask seg/labels/{split}/{i}_train_id.png",
     "seg/images/{split} seg/labels/{split} _train_id", NUMBERS, 0),
    ("photo d/benign ({i}).png", "mask d/benign ({i})_mask.png", "d d _mask", TRAIN, 0),
    ("photo img_dir/{split}/P{i}_0_896_0_896.png",
     "mask ann_dir/{split}/P{i}_0_896_0_896_instance_color_RGB.png",
     "img_dir/{split} ann_dir/{split} _instance_color_RGB", NUMBERS, 1),
    ("photo {split}_rgb/nyu_rgb_{i}.png", "mask {split}_labels_13/new_nyu_class13_{i}.png",
     "{split}_rgb/nyu_rgb_*.* {split}_labels_13/new_nyu_class13_*.*", NUMBERS, 0),
    ("photo AOI_{k}/RGB-PanSharpen/RGB-PanSharpen_img{i}.png", "mask AOI_{k}/masks/mask_img{i}.png",
     "*/RGB-PanSharpen/RGB-PanSharpen_*.* */masks/mask_*.*", TRAIN, 0),
    ("photo images/{i}.jpg", "mask labels/{i}.png", "photo augmented/images/a{i}.jpg",
     "mask augmented/labels/a{i}.png", "images labels", TRAIN, 1),
    ("photo Bilder/{i}.jpg", "mask Masken/{i}.png", "lines {split}.csv=Bild;Maske\n{i}.jpg;{i}.png",
     "Bilder Masken", {"train": [0], "val": [1]}, 0),
]  # fmt: skip


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case[-3].replace("/", "-"))
def test_layouts_as_they_are_published(tmp_path, case):
    *places, expected, splits, num_findings = case
    plant(tmp_path, *places, splits=splits)
    layout = guess(tmp_path)
    data = layout.data
    fields = expected.replace("{{", "{").replace("}}", "}").split(" ")
    assert [data.images, data.masks, data.mask_suffix] == [*fields, *[""] * (3 - len(fields))]
    assert len(layout.findings) <= num_findings, layout.findings
    assert bool(layout.findings) == bool(num_findings)
    assert layout.is_split == (len(splits) > 1)
    found = [find_files(data, split) for split in layout.splits]
    assert sum(len(f.stems) for f in found) == sum(map(len, splits.values()))
    assert all({*f.stems} <= f.images.keys() & f.masks.keys() for f in found)


def test_left_and_right_are_no_image_and_mask(tmp_path):
    plant(tmp_path, "photo Image_{i}L.jpg", "mask Image_{i}L_1stHO.png", "photo Image_{i}R.jpg",
          "mask Image_{i}R_1stHO.png", splits=TRAIN)  # fmt: skip
    layout = guess(tmp_path)
    assert (layout.data.mask_suffix, layout.findings) == ("_1stHO", ())
    assert len(find_files(layout.data, "all").stems) == 8


def test_lists_name_scenes_by_their_last_folder(tmp_path):
    for size in ("480p", "Full"):
        plant(tmp_path, f"photo JPEGImages/{size}/s{{i}}/0.jpg", f"mask Masks/{size}/s{{i}}/0.png")
    plant(tmp_path, "lines ImageSets/{split}.txt=s{i}")
    layout = guess(tmp_path)
    assert (layout.splits, layout.findings) == (("train", "val"), ())
    assert [len(find_files(layout.data, split).stems) for split in layout.splits] == [8, 4]


@pytest.mark.parametrize(
    ("places", "masks", "severity", "told"),
    [
        (["mask masks/{i}.png", "mask masks_old/{i}.png"], "masks", "warning", "masks_old"),
        (["mask labels/{i}.png", "mask labels_v2/{i}.png"], "labels", "warning", "labels_v2"),
        (["shades masks/{i}.png", "mask targets/{i}.png"], "targets", "warning", "shades of grey"),
        (["colors gt_a/{i}.png", "mask gt_b/{i}.png"], "gt_b", "warning", "masks in colours"),
        (["mask predictions/{i}.png"], "predictions", "warning", "nothing else pairs"),
        (["mask masks/{i}.png", "photo more/pics/{k}.png", "mask more/gt/{k}.png"], "masks",
         "warning", 'data.masks="more/gt"'),
        (["mask masks/{i}.png", "photo thumbs/{i}.png"], "masks", "note", "thumbs: 4 pictures"),
        (["mask masks/{i}.png", "lines train.json={{}}"], "masks", "warning", "train.json: .json"),
        (["mask masks/{i}.png", "lines train.txt={i}"], "masks", "warning", "to validate on"),
        (["mask masks/{i}.png", "lines val.txt=other{i}"], "masks", "warning", "name no pair"),
    ],
)  # fmt: skip
def test_what_is_not_used_is_named(tmp_path, places, masks, severity, told):
    plant(tmp_path, "photo images/{i}.jpg", *places, splits=TRAIN)
    layout = guess(tmp_path)
    assert (layout.data.images, layout.data.masks) == ("images", masks)
    (finding,) = layout.findings
    assert finding.severity == severity
    assert told in " ".join((finding.title, *finding.items))


def test_results_of_predict_are_passed_over(tmp_path):
    plant(tmp_path, "photo images/{i}.jpg", "mask masks/{i}.png", "mask labels/{i}.png",
          "photo labels/{i}_overlay.jpg", splits=TRAIN)  # fmt: skip
    for i in range(4):
        classes = [{"name": "a", "share": 1.0, "confidence": 1.0}]
        content = {"file": f"images/{i:03d}.jpg", "size": [32, 32], "classes": classes}
        (tmp_path / f"labels/{i:03d}.json").write_text(json.dumps(content))
    layout = guess(tmp_path)
    assert layout.data.masks == "masks"
    assert [(f.severity, f.items) for f in layout.findings] == [("note", ("labels: 8",))]


def test_lists_of_two_columns_pair_what_names_do_not(tmp_path):
    plant(tmp_path, "photo scans/a{i}.png", "mask drawn/b{i}.png",
          "lines {split}.csv=scans/a{i}.png,drawn/b{i}.png")  # fmt: skip
    layout = guess(tmp_path)
    assert (layout.data.split_file, layout.splits) == ("{split}.csv", ("train", "val"))
    found = find_files(layout.data, "val")
    assert [found.masks[stem][-8:] for stem in found.stems] == ["b004.png", "b005.png"]


@pytest.mark.parametrize("name", ["folder", "ade20k", "cityscapes", "voc"])
def test_nothing_is_said_of_a_right_tree(make_tree, name):
    assert guess(make_tree(name)).findings == ()


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "voc"])
def test_official_sets_are_found_below_other_folders(make_tree, tmp_path, name):
    root = make_tree(name)
    top = {"ade20k": "ADE20k/ADEChallengeData2016", "cityscapes": "CityScapes", "voc": "VOCdevkit"}
    moved = tmp_path / "downloads/sets" / top[name].rpartition("/")[2].replace("CityS", "citys")
    moved.parent.mkdir(parents=True)
    (root / top[name]).rename(moved)
    if name == "voc":
        lists = moved / "VOC2012/ImageSets/Segmentation"
        (lists / "val.txt").write_text("".join(f"{i}\n" for i in range(1449)))
    layout = guess(tmp_path)
    assert (layout.data.dataset, layout.data.root) == (name, str(moved.parent))
    assert not layout.findings
    if name != "voc":
        assert len(find_files(layout.data, "train").stems) == 12


def test_foreign_ids_in_the_style_of_cityscapes_are_a_folder(make_tree):
    root = make_tree("cityscapes")
    for path in root.rglob("*_labelIds.png"):
        Image.fromarray(np.full((65, 97), 40, np.uint8)).save(path)
    layout = guess(root)
    assert (layout.data.dataset, layout.splits) == ("folder", ("train", "val"))
    assert "ids that are not Cityscapes' (40)" in layout.why
    assert layout.data.masks == "CityScapes/gtFine/{split}/**/*_gtFine_labelIds.*"


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (["photo images/a{i}.jpg", "mask masks/b{i}.png"], "images has a000, masks b000"),
        (["photo images/{i}.jpg", "lines 1st_manual/{i}.gif=x"], "1st_manual holds 4 .gif"),
    ],
)
def test_folder_without_pairs_says_why(tmp_path, places, told):
    plant(tmp_path, *places, splits=TRAIN)
    with pytest.raises(DataError, match="holds no images with masks") as error:
        guess(tmp_path)
    assert told in error.value.what
