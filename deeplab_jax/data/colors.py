"""Default class colours: distinct with and without colour blindness, and light."""

import numpy as np

# Okabe and Ito, "Color Universal Design" (2008), without black, which hides in dark pictures.
_OKABE_ITO = "56b4e9 e69f00 009e73 f0e442 cc79a7 d55e00 0072b2"
_STEP = 22  # of the grid of further colours, in each channel; 255 colours take 15 ms
_LIGHTNESS = (0.5, 0.95)  # OKLab's, 0 is black and 1 white; the darkest of the seven has 0.53

# Linear RGB as seen with all cones, without middle ones (deuteranopia) and without long ones
# (protanopia): Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of
# Color Vision Deficiency" (2009), severity 1.
_VISIONS = np.array(
    [
        np.eye(3),
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    ]
)
# Linear RGB to OKLab, a space with about perceptual distances: B. Ottosson (2020).
_TO_LMS = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
_TO_LAB = np.array(
    [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
)


def safe_palette(count: int) -> np.ndarray:
    """Returns the default colours of `count` classes, uint8 (count, 3) RGB.

    The first seven are Okabe and Ito's. Each further colour comes from a regular grid of light
    colours: the one whose distance to all colours before it, and to the white of ignored pixels, is
    largest in the worst of three kinds of vision. A class keeps its colour when others are added.
    """
    first = np.frombuffer(bytes.fromhex(_OKABE_ITO), np.uint8).reshape(-1, 3)
    if count <= len(first):
        return first[:count].copy()
    steps = np.append(np.arange(0, 255, _STEP), 255)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3).astype(np.uint8)
    lightness = as_seen(grid)[0, :, 0]
    is_light = (lightness >= _LIGHTNESS[0]) & (lightness <= _LIGHTNESS[1])
    colors = np.concatenate([first, grid[is_light], np.full((1, 3), 255, np.uint8)])
    # Rounded, so that the last bits of another machine's arithmetic choose no other colour.
    seen = np.ascontiguousarray(as_seen(colors).round(4).transpose(0, 2, 1))
    distance = _squared_distance(seen, -1)
    order = list(range(len(first)))
    for last in order:
        distance = np.minimum(distance, _squared_distance(seen, last))
    while len(order) < count:
        order.append(int(distance.argmax()))
        distance = np.minimum(distance, _squared_distance(seen, order[-1]))
    return colors[order]


def as_seen(colors: np.ndarray) -> np.ndarray:
    """Returns colours uint8 (N, 3) in OKLab for each of three kinds of vision, (3, N, 3)."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.einsum("vij,nj->vni", _VISIONS, linear).clip(0, 1)
    return np.cbrt(seen @ _TO_LMS.T) @ _TO_LAB.T


def _squared_distance(seen: np.ndarray, index: int) -> np.ndarray:
    """Returns squares (N,) of the distance to one colour, in the vision where it is smallest."""
    return np.square(seen - seen[..., index, None]).sum(1).min(0)  # colours last: 3 times as fast
