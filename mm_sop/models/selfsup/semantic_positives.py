"""Weights of SePP's semantic positives, and the image indices that exclude them from the negatives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmpretrain.structures import DataSample
from torch import Tensor


@dataclass
class PositiveTerm:
    """One term of the objective: the first view against another one.

    Attributes:
        view: Index of the view that is the positive.
        weight: Weights of the samples, (B,), or None where all are 1.
        images: Which of a sample's two images (0 or 1) the first view and the positive show.
    """

    view: int
    weight: Tensor | None
    images: tuple[int, int]

    @property
    def options(self) -> dict[str, Tensor]:
        """Keyword arguments of a head's loss, which may have no weights."""
        return {} if self.weight is None else dict(weight=self.weight)


class SemanticPositives:
    """Mixin for two-view algorithms of MMPretrain that train on a :class:`SemanticPairDataset`.

    With two views there is one term, and semantic samples have the weight ``semantic_weight`` (lambda). With three, the
    mode ``'joint'``, there is a second term with that weight for the samples whose third view shows a partner.

    Raises:
        ValueError: ``semantic_weight`` is negative.
    """

    semantic_weight: float

    def __init__(self, *args, semantic_weight: float = 1.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.set_semantic_weight(semantic_weight)

    def set_semantic_weight(self, semantic_weight: float) -> None:
        """Set the weight lambda; raise ``ValueError`` if it is negative."""
        if semantic_weight < 0:
            raise ValueError(f'semantic_weight of {type(self).__name__} must not be negative, got {semantic_weight}')
        self.semantic_weight = semantic_weight

    def positive_terms(self, inputs: Sequence[Tensor], data_samples: Sequence[DataSample]) -> list[PositiveTerm]:
        """Determine the terms of the objective for a batch; the samples are read only where it matters.

        Raises:
            ValueError: There are neither two nor three views, or the samples lack the fields of SemanticPairDataset.
        """
        if isinstance(inputs, Tensor) or len(inputs) not in (2, 3):
            raise ValueError(f"{type(self).__name__} needs two views of one size, or three for SePP's mode 'joint'")
        if len(inputs) == 2:
            semantic = None if self.semantic_weight == 1 else self._read_semantic(inputs, data_samples)
            weight = None if semantic is None else torch.where(semantic, self.semantic_weight, 1.0)
            return [PositiveTerm(1, weight, (0, 1))]
        weight = self.semantic_weight * self._read_semantic(inputs, data_samples).float()
        return [PositiveTerm(1, None, (0, 0)), PositiveTerm(2, weight, (0, 1))]

    def _read_semantic(self, inputs: Sequence[Tensor], data_samples: Sequence[DataSample]) -> Tensor:
        flags = [self._read(sample, 'is_semantic') for sample in data_samples]
        return torch.tensor(flags).to(inputs[0].device, non_blocking=True)

    def read_ids(self, data_samples: Sequence[DataSample], device: torch.device) -> tuple[Tensor, Tensor]:
        """Read the indices of the two images of every sample, (B, 2), and of all their partners, (B, 2, P)."""
        ids = torch.tensor([self._read(sample, 'image_ids') for sample in data_samples])
        partners = [torch.as_tensor(self._read(sample, 'partner_ids')) for sample in data_samples]
        return ids.to(device, non_blocking=True), torch.stack(partners).to(device, non_blocking=True)

    def _read(self, sample: DataSample, name: str) -> Any:
        if name not in sample:
            raise ValueError(
                f'{type(self).__name__}: samples have no {name!r}, which weights, masking and a third view need. '
                "Load the data with dict(type='SemanticPairDataset', ...); a manifest without pairs will do"
            )
        return sample.get(name)
