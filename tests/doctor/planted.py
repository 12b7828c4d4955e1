"""Plants faults of every kind in a folder of `images/{train,val}` and `labels/{train,val}`."""

import shutil
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

# Name of the fault, the kind of finding that must name it; in this order, on one sample each.
FAULTS = {
    "stray value": ("error", "unknown-value"),
    "size": ("error", "size"),
    "truncated image": ("error", "unreadable-image"),
    "truncated mask": ("error", "unreadable-mask"),
    "empty image": ("error", "unreadable-image"),
    "html as image": ("error", "unreadable-image"),
    "text as mask": ("error", "unreadable-mask"),
    "no mask": ("error", "no-mask"),
    "no image": ("error", "no-image"),
    "colours": ("error", "color-mask"),
    "jpeg mask": ("error", "lossy-mask"),
    "jpeg made png": ("error", "blended-mask"),
    "smooth resize": ("error", "blended-mask"),
    "leak": ("error", "leak"),
    "bomb": ("error", "unreadable-image"),
    "exif and mask": ("error", "exif"),
    "exif": ("warning", "exif"),
    "duplicate": ("warning", "duplicate"),
    "all ignored": ("warning", "all-ignored"),
    "shifted": ("warning", "shifted"),
    "case": ("error", "case"),
    "hidden": ("note", "foreign-files"),
}


def plant(root, names):
    """Plants one fault after another, and returns {fault: name of the sample}.

    Args:
      root: the folder.
      names: samples of its split "train", one for each fault; their masks hold classes and 255.
    """
    used = dict(zip(FAULTS, names, strict=True))
    for fault, name in used.items():
        image = root / f"images/train/{name}.jpg"
        mask = root / f"labels/train/{name}.png"
        _ACTIONS[fault](root, image, mask)
    return used


def _stray(root, image, mask):
    label = np.array(Image.open(mask))
    label[3:5, 3:5] = 200
    Image.fromarray(label).save(mask)


def _size(root, image, mask):
    Image.fromarray(np.array(Image.open(mask))[1:]).save(mask)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _colors(root, image, mask):
    label = np.array(Image.open(mask))
    Image.fromarray(np.stack((label, 40 + label // 2, 255 - label), -1)).save(mask)


def _jpeg_mask(root, image, mask):
    Image.open(mask).save(mask, "JPEG")


def _jpeg_made_png(root, image, mask):
    encoded = cv2.imencode(".jpg", np.array(Image.open(mask)), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    Image.fromarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)).save(mask)


def _smooth(root, image, mask):
    label = np.array(Image.open(mask))
    half = cv2.resize(label, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    Image.fromarray(cv2.resize(half, label.shape[::-1])).save(mask)


def _leak(root, image, mask):
    shutil.copy(image, root / "images/val/leaked.jpg")
    shutil.copy(mask, root / "labels/val/leaked.png")


def _duplicate(root, image, mask):
    shutil.copy(image, image.with_name("copied.jpg"))
    shutil.copy(mask, mask.with_name("copied.png"))


def _bomb(root, image, mask):
    """A grey PNG of 20000 x 20000 black pixels in 50 kB."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(2501)) for _ in range(20000)]
    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    image.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", b"".join(rows) + packer.flush())
        + chunk(b"IEND", b"")
    )


def _orient(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(image).save(image, "JPEG", exif=exif, quality=90)


def _ignore(root, image, mask):
    Image.fromarray(np.full_like(np.array(Image.open(mask)), 255)).save(mask)


def _shift(root, image, mask):
    label = np.array(Image.open(mask))
    Image.fromarray(np.where(label == 255, 255, label + 1).astype(np.uint8)).save(mask)


_ACTIONS = {
    "stray value": _stray,
    "size": _size,
    "truncated image": lambda root, image, mask: _truncate(image),
    "truncated mask": lambda root, image, mask: _truncate(mask),
    "empty image": lambda root, image, mask: image.write_bytes(b""),
    "html as image": lambda root, image, mask: image.write_text("<!DOCTYPE html><html>404</html>"),
    "text as mask": lambda root, image, mask: mask.write_text("not found"),
    "no mask": lambda root, image, mask: mask.unlink(),
    "no image": lambda root, image, mask: image.unlink(),
    "colours": _colors,
    "jpeg mask": _jpeg_mask,
    "jpeg made png": _jpeg_made_png,
    "smooth resize": _smooth,
    "leak": _leak,
    "bomb": _bomb,
    "exif and mask": lambda root, image, mask: _orient(image, 6),
    "exif": lambda root, image, mask: _orient(image, 3),
    "duplicate": _duplicate,
    "all ignored": _ignore,
    "shifted": _shift,
    "case": lambda root, image, mask: (
        mask.rename(mask.with_name(mask.stem.upper() + "X.png"))
        and image.rename(image.with_name(image.stem.lower() + "x.jpg"))
    ),
    "hidden": lambda root, image, mask: image.with_name("._hidden.jpg").write_text("Mac OS X"),
}
