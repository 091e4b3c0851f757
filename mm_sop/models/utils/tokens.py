"""Tokens and maps: one view of the outputs of transformers and convolutional networks, and masked tokens."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.structures import DataSample
from torch import Tensor


def split_features(features: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Split a backbone's output into global and local representations.

    Args:
        features: Tokens, (B, 1 + L, D), [CLS] first, or a feature map, (B, D, h, w), or a sequence that ends with one
            or with a map and its own global vector, (B, D').

    Returns:
        [CLS], or the network's global vector, or the mean over the map, (B, D); patch tokens, or positions of the map,
        (B, L, D).

    Raises:
        ValueError: If the output is none of these.
    """
    features = [features] if isinstance(features, Tensor) else features
    if len(features) > 1 and features[-1].ndim == 2 and features[-2].ndim == 4:
        return features[-1], _flatten_map(features[-2])
    last = features[-1]
    if last.ndim == 3:
        return last[:, 0], last[:, 1:]
    if last.ndim == 4:
        local = _flatten_map(last)
        return local.mean(1), local
    raise ValueError(
        f'expected tokens (B, 1 + L, D) or a map (B, D, h, w), the backbone gave {tuple(last.shape)}; '
        "a vision transformer needs out_type='raw'"
    )


def _flatten_map(feature_map: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h w, D)."""
    return feature_map.flatten(2).transpose(1, 2)


def to_map(local: Tensor, image_size: Sequence[int]) -> Tensor:
    """Arrange local representations as a map, (B, L, D) -> (B, D, h, w), with the aspect ratio of the image (H, W).

    Strides that do not divide the sides change the ratio slightly: of all grids of L positions the closest is chosen.
    """
    count, aspect = int(local.shape[1]), image_size[0] / image_size[1]
    sides = [rows for rows in range(1, count + 1) if count % rows == 0]
    rows = min(sides, key=lambda rows: abs(math.log(rows * rows / count / aspect)))
    return local.transpose(1, 2).unflatten(2, (rows, -1))


def encode_tokens(
    backbone: Any, images: Tensor, positions: Tensor, num_tokens: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Global vectors of images, (B, D), and some of their patch tokens, (n, D).

    Args:
        backbone: Network with tokens or a map as output.
        images: (B, C, H, W).
        positions: Of the patch tokens among those of all images, int64, (n,).
        num_tokens: Number of patch tokens of an image.
        mask: Patches to hide, (B, h, w), if the backbone can.

    Raises:
        ValueError: The backbone has another number of tokens.
    """
    options = {} if mask is None else dict(mask=mask)
    if not getattr(backbone, 'selects_tokens', False):
        global_features, local_features = split_features(backbone(images, **options))
        if local_features.shape[1] != num_tokens:
            raise ValueError(
                f'masks of {num_tokens} patches do not fit {local_features.shape[1]} tokens of the backbone'
            )
        return global_features, local_features.flatten(0, 1)[positions]
    # [CLS] comes first in every image.
    cls = torch.arange(len(images), device=images.device) * (1 + num_tokens)
    rows = torch.cat([cls, positions + positions // num_tokens + 1])
    return backbone(images, positions=rows, **options)[-1].tensor_split([len(images)])


class MaskedTokens:
    """Masked tokens of two global views and their weights.

    Positions and weights are computed on the host, where the masks are drawn, so that selecting tokens does not
    synchronize with the device.

    Args:
        mask: Masks of the first views, then of the second ones, (2 B, h, w), bool, on the host.
        device: Device of the tokens.
    """

    def __init__(self, mask: Tensor, device: torch.device) -> None:
        flat = mask.flatten(1)
        counts = flat.sum(1)
        # The mean over each image's masked tokens, then over all images, with or without a mask.
        weights = 1 / (len(flat) * counts.clamp_min(1).float())
        self.positions = flat.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
        self.weights = weights.repeat_interleave(counts).to(device, non_blocking=True)
        self.mask = mask.to(device, non_blocking=True)
        self.fraction = torch.full((), len(self.weights) / flat.numel(), device=device)

    @classmethod
    def from_samples(cls, data_samples: Sequence[DataSample] | None, device: torch.device) -> 'MaskedTokens':
        """Collect the masks of data samples, (2, h, w) each.

        Raises:
            ValueError: If there are no masks, or not one for each of the two global views.
        """
        if not data_samples or 'mask' not in data_samples[0]:
            raise ValueError(
                "masked image modeling needs masks: add dict(type='BlockMaskGenerator', ...) to the pipeline and "
                "algorithm_keys=['mask'] to PackInputs, or remove target_generator and mim_head"
            )
        masks = torch.stack([torch.as_tensor(sample.mask) for sample in data_samples], dim=1)
        if len(masks) != 2:
            raise ValueError(f'expected one mask for each of the two global views, got {len(masks)}')
        return cls(masks.flatten(0, 1).bool().cpu(), device)

    def __len__(self) -> int:
        return len(self.weights)
