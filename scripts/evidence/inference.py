"""Inference at two sizes and two batches, and from a file to a mask: `deeplab bench`."""

from evidence.networks import NARROW
from evidence.record import Box, Item, Result
from evidence.steps import bench

_SIZES = ((512, 512), (1024, 2048))
_BATCHES = (1, 16)


def items(box: Box) -> list[Item]:
    """Returns R-50-D16 with the 19 classes of Cityscapes, in bfloat16."""
    sizes = box.pick(_SIZES, ((64, 64),))
    return [
        Item(f"{h}x{w}, batch {batch}", lambda s=(h, w), b=batch: _infer(box, s, b), 90)
        for h, w in sizes
        for batch in box.pick(_BATCHES, (2,))
    ]


def _infer(box: Box, size: tuple[int, int], batch: int) -> Result:
    overrides = [
        f"--config.data.crop_size={size[0]},{size[1]}",
        f"--config.train.batch_size={batch}",
        "--config.train.loss_groups=1",
        f"--config.model.dtype={box.pick('bfloat16', 'float32')}",
        *box.pick((), NARROW),
    ]
    return bench(box, "cityscapes_r50_os16", "inference,end-to-end", overrides)
