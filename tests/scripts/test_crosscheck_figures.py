"""Figures of the table, against PyTorch and an evaluator written from the specification."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.config import PUBLISHED_MIOU, get_config
from deeplab_jax.config.recipe import apply_overrides
from deeplab_jax.inference.protocol import TABLE

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def images_and_masks(root, dataset):
    if dataset == "voc":
        images = root.glob("VOCdevkit/VOC2012/JPEGImages/val_*.jpg")
        return [(p, p.parents[1] / "SegmentationClass" / f"{p.stem}.png") for p in images]
    if dataset == "ade20k":
        top = root / "ADE20k" / "ADEChallengeData2016"
        images = top.glob("images/validation/*.jpg")
        return [(p, top / "annotations" / "validation" / f"{p.stem}.png") for p in images]
    top = root / "CityScapes"
    images = top.glob("leftImg8bit/val/*/*_leftImg8bit.png")
    suffix = "gtFine_labelIds.png"
    return [
        (p, top / "gtFine" / "val" / p.parent.name / p.name.replace("leftImg8bit.png", suffix))
        for p in images
    ]


def truth(raw, dataset):
    """Returns classes, 255 where none counts."""
    if dataset == "voc":
        return raw
    classes = np.full(256, 255)
    values = np.arange(1, 151) if dataset == "ade20k" else np.array(CITYSCAPES_IDS)
    classes[values] = np.arange(len(values))
    return classes[raw]


def make_network(torch_reference, model, image):
    """Returns a network whose logits on the image spread around 0 for every class."""
    torch, nn = torch_reference.torch, torch_reference.nn
    torch.manual_seed(0)
    net = torch_reference.network(model).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.8, 1.25)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.1)
        logits, classifier = net(image)[0], net.decoder[3]
        # Quartiles: the rows beside the padding are far off, and would set mean and deviation.
        low, middle, high = logits[0].flatten(1).quantile(torch.tensor([0.25, 0.5, 0.75]), 1)
        scale = (high - low).mean()
        classifier.weight /= scale
        classifier.bias.sub_(middle).div_(scale)
    return net


def network_input(torch_reference, image, base):
    """Returns float32 (1, 3, h, w) of an image as OpenCV reads it."""
    height, width = image.shape[:2]
    scale = min(max(base) / max(height, width), min(base) / min(height, width))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    x = torch_reference.torch.tensor((resized[..., ::-1].astype(np.float32) - mean) / std)
    return x.permute(2, 0, 1)[None]


def make_void(path, where, value):
    stored = Image.open(path)
    raw = np.array(stored)
    raw[where] = value
    changed = Image.fromarray(raw)
    if stored.mode == "P":
        changed.putpalette(stored.getpalette())
    changed.save(path)
    return raw


def network_and_iou(torch_reference, model, root, dataset, base):
    """Returns a network and its IoU by class; makes void what is too close to call in float32."""
    samples = [(cv2.imread(str(i)), mask) for i, mask in sorted(images_and_masks(root, dataset))]
    inputs = [network_input(torch_reference, image, base) for image, _ in samples]
    net = make_network(torch_reference, model, inputs[0])
    classes = model.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    for x, (image, mask) in zip(inputs, samples, strict=True):
        with torch_reference.torch.no_grad():
            logits = net(x)[0]
        size = image.shape[:2]
        resize = torch_reference.F.interpolate
        logits = resize(logits, size, mode="bilinear", align_corners=False)[0]
        first, second = logits.topk(2, 0).values.numpy()
        raw = make_void(mask, first - second < 0.01, 255 if dataset == "voc" else 0)
        label, prediction = truth(raw, dataset), logits.argmax(0).numpy()
        is_valid = label != 255
        cells = label[is_valid].astype(np.int64) * classes + prediction[is_valid]
        confusion += np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    assert np.count_nonzero(confusion.sum(0)) >= 5
    assert confusion.sum() > 0.8 * sum(image[..., 0].size for image, _ in samples)
    hit = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        return net, hit / (confusion.sum(0) + confusion.sum(1) - hit)


@pytest.mark.parity("images of the table's size; verdicts and the file are in the first tier")
@pytest.mark.parametrize(
    ("key", "depth", "base", "images"),  # few, for each shape compiles
    [
        (("voc", 50, 16), 50, (2048, 512), 1),
        (("ade20k", 101, 8), 18, (2048, 512), 2),
        (("cityscapes", 50, 16), 18, (2048, 1024), 1),
    ],
)
def test_figures_are_those_of_pytorch(
    torch_reference, make_tree, crosscheck, small, tmp_path, monkeypatch, key, depth, base, images
):
    dataset, row_depth, stride = key
    overrides = [*small, f"--config.model.depth={depth}"]
    config = apply_overrides(get_config(*key), overrides)
    root = make_tree(dataset, num_train=0, num_val=images)
    net, iou = network_and_iou(torch_reference, config.model, root, dataset, base)
    name = f"deeplabv3plus_resnet{row_depth}os{stride}_{dataset}_train.pth"
    torch_reference.torch.save({"model": net.state_dict(), "epoch": 60}, tmp_path / name)
    expected = 100 * np.nanmean(iou)

    row = f"{dataset}_r{row_depth}_os{stride}"
    for offset, verdict in ((0.04, "pass"), (-0.04, "pass"), (0.06, "fail"), (-0.06, "fail")):
        monkeypatch.setitem(PUBLISHED_MIOU, key, expected + offset)
        argv = ("--data", root, "--weights", tmp_path, "--rows", row, *overrides)
        code, out, _ = crosscheck(*argv)
        assert code == (0 if verdict == "pass" else 1)
        line = next(line for line in out.splitlines() if line.startswith(row))
        assert line.split()[1:4] == [
            f"{expected + offset:.2f}",
            f"{expected:.2f}",
            f"{-offset:+.3f}",
        ]
        assert line.endswith(verdict)
    rows = json.loads((tmp_path / "crosscheck.json").read_text())["rows"]
    got = rows[" ".join([row, *overrides])]
    measurement = got["measurement"]
    assert got["ours"] == pytest.approx(expected, abs=1e-6)
    assert measurement["mean_iou"] == pytest.approx(expected / 100, abs=1e-8)
    theirs = [np.nan if value is None else value for value in measurement["iou"]]
    np.testing.assert_allclose(theirs, iou, atol=1e-8)
    assert (measurement["num_images"], measurement["protocol"]) == (images, str(TABLE))
    assert got["overrides"] == overrides
