"""One view on the outputs of transformers and of convolutional networks."""

import math
from collections.abc import Sequence

from torch import Tensor


def split_features(features: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Global and local representations of a backbone's last output.

    Args:
        features: Tokens, (B, 1 + L, D), [CLS] first, or a feature map, (B, D, h, w), or a sequence that ends with one
            or with a map and its own global vector, (B, D').

    Returns:
        [CLS], or the network's global vector, or the mean over the map, (B, D); patch tokens, or places of the map,
        (B, L, D).

    Raises:
        ValueError: If the output is none of these.
    """
    features = [features] if isinstance(features, Tensor) else features
    if len(features) > 1 and features[-1].ndim == 2 and features[-2].ndim == 4:
        return features[-1], _places(features[-2])
    last = features[-1]
    if last.ndim == 3:
        return last[:, 0], last[:, 1:]
    if last.ndim == 4:
        local = _places(last)
        return local.mean(1), local
    raise ValueError(
        f'expected tokens (B, 1 + L, D) or a map (B, D, h, w), the backbone gave {tuple(last.shape)}; '
        "a vision transformer needs out_type='raw'"
    )


def _places(feature_map: Tensor) -> Tensor:
    return feature_map.flatten(2).transpose(1, 2)


def to_map(local: Tensor, image_size: Sequence[int]) -> Tensor:
    """Arrange local representations as a map, (B, L, D) -> (B, D, h, w), with the aspect of the image (H, W).

    Sides that strides do not divide change the aspect a little: of all maps of L places the most similar one is taken.
    """
    count, aspect = int(local.shape[1]), image_size[0] / image_size[1]
    sides = [rows for rows in range(1, count + 1) if count % rows == 0]
    rows = min(sides, key=lambda rows: abs(math.log(rows * rows / count / aspect)))
    return local.transpose(1, 2).unflatten(2, (rows, -1))
