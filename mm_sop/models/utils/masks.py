"""Masked tokens of a batch."""

from collections.abc import Sequence

import torch
from mmpretrain.structures import DataSample
from torch import Tensor


class MaskedTokens:
    """Which tokens of two global views are masked, and what each of them weighs.

    Positions and weights are computed on the host, where the masks are drawn, so selecting tokens does not
    synchronise with the device.

    Args:
        mask: View-major, (2 B, h, w), bool, on the host.
        device: Device of the tokens.
    """

    def __init__(self, mask: Tensor, device: torch.device) -> None:
        flat = mask.flatten(1)
        counts = flat.sum(1)
        # The mean over each image's masked tokens, then over all images, with or without a mask.
        weights = 1 / (len(flat) * counts.clamp_min(1).float())
        self._positions = flat.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
        self.weights = weights.repeat_interleave(counts).to(device, non_blocking=True)
        self.mask = mask.to(device, non_blocking=True)
        self.share = torch.full((), len(self.weights) / flat.numel(), device=device)

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

    def select(self, tokens: Tensor) -> Tensor:
        """The masked tokens, (2 B, L, D) -> (m, D)."""
        if tokens.shape[:2] != self.mask.flatten(1).shape:
            raise ValueError(
                f'masks of {tuple(self.mask.shape[1:])} patches do not fit {tokens.shape[1]} tokens: the grid of the '
                'mask generator must be the crop size divided by the patch size'
            )
        return tokens.flatten(0, 1)[self._positions]
