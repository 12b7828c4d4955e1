"""Lists of samples: encodings, and all that a line may name."""

import os
import shlex

import pytest

from deeplab_jax.data.files import find_files
from deeplab_jax.data.lists import read_lines
from deeplab_jax.data.open import open_dataset
from deeplab_jax.errors import DataError

LIST = {"images": "images", "masks": "labels", "split_file": "{split}.txt"}


@pytest.fixture
def tree(tmp_path):
    """A folder with images, masks, and a second folder of masks."""
    root = tmp_path / "root"
    for stem in ("a", "b", "weed (0)", "weed (1)", "sub/c", "sub/dé", "x/e", "y/e", "f, g"):
        for path in (f"images/{stem}.jpg", f"labels/{stem}.png", f"other/{stem}_2.png"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
    return root


@pytest.fixture
def listed(data_config, tree):
    """Returns listed(text, **fields) -> [(stem, mask under the root)] of a list."""

    def listed(text, **fields):
        (tree / "train.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        files = find_files(data_config("folder", tree, **(LIST | fields)), "train")
        return [(stem, os.path.relpath(files.masks[stem], tree)) for stem in files.stems]

    return listed


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_usual_encoding_and_end_of_line(tmp_path, encoding, end):
    path = tmp_path / "list.txt"
    path.write_bytes(end.join(["a", "", "sub/dé", " ", "b"]).encode(encoding))
    assert read_lines(path) == ["a", "sub/dé", "b"]


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\xff\xfe\x01", b"a\x81\xffb", b"\xff\xfea"])
def test_what_is_no_text_is_refused(tmp_path, data):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(DataError, match="is no text in UTF-8, UTF-16 or Windows-1252 - save it as"):
        read_lines(tmp_path / "list.txt")


ONE = {
    "a": "a", "a.JPG": "a", "a.png": "a", ' "a.jpg" ': "a", "'weed (0)'": "weed (0)",
    "images/a.jpg": "a", "images/a": "a", "/images/a.jpg": "a", "./images/sub/c": "sub/c",
    "{root}/images/a.jpg": "a", "{root}/images/sub/c": "sub/c", "{real}/images/a.jpg": "a",
    "sub\\c": "sub/c", ".\\images\\sub\\c.jpg": "sub/c", "c": "sub/c", "c.jpg": "sub/c",
    "images/weed (0).jpg": "weed (0)", "sub/de\u0301.jpg": "sub/dé", "f, g": "f, g",
    "images/f, g.jpg": "f, g", "y/e": "y/e",
}  # fmt: skip


@pytest.mark.parametrize("line", ONE)
def test_one_column(listed, tree, line, tmp_path):
    moved = tmp_path / "moved"
    tree.rename(moved)
    tree.symlink_to(moved)  # a root that is a link itself
    line, stem = line.replace("{root}", str(tree)).replace("{real}", str(moved)), ONE[line]
    assert listed(f"{line}\n") == [(stem, f"labels/{stem}.png")]


TWO = {
    "images/weed (0).jpg labels/weed (0).png": ("weed (0)", "labels/weed (0).png"),
    "images/weed (0).jpg  other/weed (1)_2.png": ("weed (0)", "other/weed (1)_2.png"),
    "a\t a.png": ("a", "labels/a.png"), "a,b.png": ("a", "labels/b.png"),
    "a.jpg;labels/a.png": ("a", "labels/a.png"),
    '"images/a.jpg", "other/a_2.png"': ("a", "other/a_2.png"),
    "images\\sub\\c.jpg\tother\\sub\\c_2.png": ("sub/c", "other/sub/c_2.png"),
    "/images/a.jpg /other/a_2.png": ("a", "other/a_2.png"),
    "{root}/images/a.jpg,{root}/other/a_2.png": ("a", "other/a_2.png"),
    "images/f, g.jpg, labels/f, g.png": ("f, g", "labels/f, g.png"),
}  # fmt: skip


@pytest.mark.parametrize("line", TWO)
def test_the_mask_of_two_columns_is_the_one_listed(listed, tree, line):
    assert listed(line.replace("{root}", str(tree))) == [TWO[line]]


@pytest.mark.parametrize("head", [
    "image,mask", "filename", "# my split", "Image ID; path", "# made by x\nfilename",
])  # fmt: skip
def test_titles_and_comments_name_nothing(listed, head):
    assert listed(f"{head}\na.jpg\n") == [("a", "labels/a.png")]


REFUSED = {
    "a,b": "has a line of two images, a and b .* - write one image a line, or an image and its",
    "a -1": r"has a line of 2 columns \(a -1\) - write one image a line",
    "a b.png 0": r"has a line of 3 columns \(a b.png 0\)",
    "JPEGImages/a.jpg labels/a.png": r"2 columns whose image is not there: looked for "
    r"\S+/root/images/JPEGImages/a.jpg and \S+/root/JPEGImages/a.jpg \(",
    "a.jpg masks/a.png": r"a mask that is not there: looked for \S+/root/labels/masks/a.png and "
    r"\S+/root/masks/a.png \(a.jpg masks/a.png\) - add it",
    "a.jpg ../a.png": "names a mask that lies outside .* - name a folder above",
    "a.jpg link.png": "names a mask that is not there",
    "e": r"the name of 2 images: x/e, y/e \(e\) - write their paths under the root",
    "a labels/a.png\na other/a_2.png": "names a twice, with other masks .* - leave one line",
    "a -1\nb 1\nc 1": r"\(a -1\), and 2 more such - ",
}


@pytest.mark.parametrize("line", REFUSED)
def test_lines_that_cannot_be_used_say_why(listed, tree, tmp_path, line):
    (tmp_path / "x.png").touch()
    (tree / "link.png").symlink_to(tmp_path / "x.png")
    with pytest.raises(DataError, match=f"train.txt: .*{REFUSED[line]}"):
        listed(line)


def test_missing_images_say_where_they_were_looked_for(data_config, tree):
    (tree / "train.txt").write_text("a\nimage/b.jpg\nsub/d\n")
    with pytest.raises(DataError) as caught:
        open_dataset(data_config("folder", tree, **LIST), 4, "train")
    assert "2 images missing (image/b, sub/d); 2 masks missing (image/b, sub/d); the first was" in (
        str(caught.value)
    )
    assert f"looked for as {tree}/images/image/b.jpg (or .jpeg," in caught.value.what
    assert f"correct these lines of {tree}/train.txt" in caught.value.fix


@pytest.mark.parametrize("columns", [1, 2])
def test_paths_outside_name_fields_that_read_them(data_config, tree, tmp_path, columns):
    root = tmp_path / "lists here"
    root.mkdir()
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    stems = ("a", "weed (0)") if columns == 1 else ("a", "b")
    masks = root.with_name("root") / "labels"
    for split in ("train", "val"):
        lines = [f"{tree}/images/{stem}.jpg" + f" {masks}/{stem}.png" * (columns - 1)
                 for stem in stems]  # fmt: skip
        (root / f"{split}.txt").write_text("\n".join(lines))
    fields = LIST | ({"masks": "../root/labels"} if columns == 1 else {})
    data = data_config("folder", root, **fields)
    with pytest.raises(DataError, match="lists what lies outside") as caught:
        open_dataset(data, 4, "train")
    if columns == 1 and "weed (0)" in stems:  # spaces: no columns can be told apart
        assert "or name a folder above both as --config.data.root" in caught.value.fix
        return
    fix = typed(caught.value.fix)
    assert fix["root"] == str(tree)
    assert open_dataset(data_config("folder", **fix), 4, "val").ids == stems


def typed(fix):
    """Returns the fields that a fix names, by name."""
    words = (word.rstrip(";") for word in shlex.split(fix) if word.startswith("--config.data."))
    return dict(word.removeprefix("--config.data.").split("=", 1) for word in words)


def test_names_of_a_pattern(data_config, tree):
    names = "a_rgb.jpg", "a_L.png", "s/b_rgb.jpg", "s/b_L.png", "t/b_rgb.jpg", "t/b_L.png"
    for name in names:
        (tree / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "p" / name).touch()
    (tree / "train.txt").write_text("a\ns/b\np/t/b_rgb.jpg\n")
    fields = {"images": "p/**/*_rgb.jpg", "masks": "p/**/*_L.png", "split_file": "{split}.txt"}
    files = find_files(data_config("folder", tree, **fields), "train")
    assert files.stems == ["a_rgb", "s/b_rgb", "t/b_rgb"]


def test_lists_of_cityscapes_with_masks(make_tree, data_config, open_error):
    root = make_tree("cityscapes")
    stem = "val/aachen/aachen_000000_000019"
    (root / "CityScapes/val.txt").write_text(
        f"leftImg8bit/{stem}_leftImg8bit.png\tgtFine/{stem}_gtFine_labelIds.png\n"
    )
    data = data_config("cityscapes", root)
    assert open_dataset(data, 19, "val").ids == ("aachen/aachen_000000_000019_leftImg8bit",)
    masks = root / f"CityScapes/gtFine/{stem}_gtFine_labelTrainIds.png"
    masks.touch()
    text = (root / "CityScapes/val.txt").read_text()
    (root / "CityScapes/val.txt").write_text(text.replace("labelIds", "labelTrainIds"))
    assert "set --config.data.mask_suffix=_gtFine_labelTrainIds" in open_error(data, 19, "val")


FOREIGN = {
    "/home/me/ds/images/a.jpg": ("a", "labels/a.png"),
    "C:\\data\\images\\sub\\c.jpg": ("sub/c", "labels/sub/c.png"),
    "~/ds/imgs/a.jpg": ("a", "labels/a.png"),
    "/home/me/ds/labels/a.png": ("a", "labels/a.png"),
    "/Seg/CamVid/images/a.jpg /Seg/CamVid/other/b_2.png": ("a", None),  # a mask that is not known
    "/Seg/CamVid/images/a.jpg /Seg/CamVid/labels/b.png": ("a", "labels/b.png"),
    "D:/x/img/weed (0).jpg\tE:/y/gt/weed (0).png": ("weed (0)", "labels/weed (0).png"),
    "/home/me/ds/images/e.jpg": ("", None),  # of two folders
}  # fmt: skip


@pytest.mark.parametrize("line", FOREIGN)
def test_paths_of_another_machine_are_read_by_their_ends_and_said(listed, data_config, tree, line):
    stem, mask = FOREIGN[line]
    if stem and mask is None:
        mask = "other/b_2.png"
    if not stem:
        (tree / "train.txt").write_text(line)
        with pytest.raises(DataError):
            open_dataset(data_config("folder", tree, **LIST), 4, "train")
        return
    assert listed(f"{line}\n") == [(stem, mask)]
    data = open_dataset(data_config("folder", tree, **LIST), 4, "train")
    assert "names files of another machine: " in data.notes[0]


def test_one_line_of_another_place_is_not_guessed(listed, tree):
    lines = "/x/images/a.jpg\n/x/images/b.jpg\n/y/c.jpg\n"
    with pytest.raises(KeyError, match=r"/y/c"):
        listed(lines)


def test_masks_and_folders_name_images(listed, tree):
    assert listed("labels/a.png\n") == [("a", "labels/a.png")]
    for line in ("sub", "images/sub/", "{root}/images/sub", "images\\sub"):
        found = listed(line.replace("{root}", str(tree)))
        assert [stem for stem, _ in found] == ["sub/c", "sub/dé"]


@pytest.mark.parametrize("text", [
    "ID,filename,score\n1,a.jpg,0.5\n2,b.jpg,1\n", "n;Image;Mask\n1;a.jpg;a.png\n2;b.jpg;b.png\n",
    "Bild;Maske\na.jpg;a.png\nb.jpg;b.png\n", 'ImageId,is_valid\n"a",0\n"b",0\n',
    "score\tfname\tsplit\n1\ta\ttrain\n2\tb\ttrain\n",
])  # fmt: skip
def test_tables_with_titles_name_images(listed, text):
    assert listed(text) == [("a", "labels/a.png"), ("b", "labels/b.png")]


def test_table_of_several_splits_is_refused_as_a_list(listed):
    with pytest.raises(DataError, match=r"told by its column is_valid \(0, 1\) - write one list"):
        listed("ImageId,is_valid\na,0\nb,1\n")


def test_lists_of_scenes_mean_their_own_images(data_config, tmp_path):
    for name in ("A/images/0", "A/masks/0", "A/images/1", "A/masks/1", "B/images/0", "B/masks/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    fields = {"images": "*/images", "masks": "*/masks"}
    for place in ("{}", "lists/{}"):
        for scene, text in (("A", "1\n0.png"), ("B", "images/0.png\n")):
            (tmp_path / place.format(scene)).mkdir(parents=True, exist_ok=True)
            (tmp_path / place.format(scene) / "train.txt").write_text(text)
        for scenes in ("*", "{A,B}"):
            split_file = f"{place.format(scenes)}/{{split}}.txt"
            data = data_config("folder", tmp_path, split_file=split_file, **fields)
            assert find_files(data, "train").stems == ["A/images/1", "A/images/0", "B/images/0"]
    (tmp_path / "0.png").touch()  # of no scene, with the name of one
    (tmp_path / "A/masks/0.txt").write_text("0\n")
    data = data_config("folder", tmp_path, images=".", masks="no", split_file="A/masks/0.txt")
    (tmp_path / "no").mkdir()
    with pytest.raises(DataError, match=r"the name of 2 images: 0, A/masks/0 .* - write their"):
        find_files(data, "train")
    data = data_config("folder", tmp_path, split_file="*/{split}.txt", **fields)
    with pytest.raises(DataError, match="matches no list - correct --config"):
        find_files(data, "val")
