"""One view on the outputs of transformers and of convolutional networks."""

import math
from collections.abc import Sequence

from torch import Tensor


def split_features(features: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Global and local representations of a backbone's last output.

    Args:
        features: Tokens, (B, 1 + L, D), [CLS] first, or a feature map, (B, D, h, w), or a sequence that ends with one.

    Returns:
        [CLS], or the mean over the map, (B, D); patch tokens, or places of the map, (B, L, D).

    Raises:
        ValueError: If the output is neither.
    """
    features = features if isinstance(features, Tensor) else features[-1]
    if features.ndim == 3:
        return features[:, 0], features[:, 1:]
    if features.ndim == 4:
        local = features.flatten(2).transpose(1, 2)
        return local.mean(1), local
    raise ValueError(
        f'expected tokens (B, 1 + L, D) or a map (B, D, h, w), the backbone gave {tuple(features.shape)}; '
        "a vision transformer needs out_type='raw'"
    )


def to_map(local: Tensor, image_size: Sequence[int]) -> Tensor:
    """Arrange local representations as a map, (B, L, D) -> (B, D, h, w), with the aspect of the image (H, W)."""
    height, width = image_size
    rows = round(math.sqrt(local.shape[1] * height / width))
    return local.transpose(1, 2).unflatten(2, (rows, -1))
