"""Maps over images."""

import matplotlib
import numpy as np
from PIL import Image


def overlay(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Color an image by a coarse map, from dark for its smallest to bright for its largest value.

    Args:
        image: RGB, uint8, (H, W, 3).
        weights: Map, (h, w).

    Returns:
        RGB, uint8, (H, W, 3).
    """
    low, high = weights.min(), weights.max()
    scaled = Image.fromarray(((weights - low) / max(high - low, 1e-12)).astype(np.float32))
    smooth = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    heat = matplotlib.colormaps['inferno'](smooth)[..., :3]
    gray = image.mean(2, keepdims=True) / 255
    return (255 * (0.35 * gray + 0.65 * heat)).round().astype(np.uint8)
