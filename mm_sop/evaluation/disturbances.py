"""Disturbances inside the network, and such as know it: internal corruption and attacks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mm_sop.datasets.transforms.perturb import picture_generator
from mm_sop.evaluation.encoders import FrozenEncoder
from mm_sop.evaluation.frozen_classifiers import FrozenClassifiers
from mm_sop.functional.attacks import pgd_attack
from mm_sop.functional.masking import drop_block, drop_random_cells, masked_mean, noisy_mean
from mm_sop.models.utils.readout import read_out


@dataclass
class InternalCorruption:
    """Classifies the mean of the last map with some cells dropped or with noise (CO-SSL).

    Draws depend on the seed and the picture, and a larger share drops more of the same cells.

    Args:
        encoder: The frozen network.
        classifiers: Those that learnt from the mean of the undisturbed map.
        dropped: Shares of dropped cells.
        noises: Deviations of the noise in multiples of the map's own.
        repeats: Number of draws.
        seed: Seed of the draws.
    """

    encoder: FrozenEncoder
    classifiers: FrozenClassifiers
    dropped: Sequence[float]
    noises: Sequence[float]
    repeats: int = 3
    seed: int = 0

    @property
    def kinds(self) -> dict[str, Sequence[float]]:
        """Levels by kind: dropped cells are left out of the mean, or counted as zero; a block; noise."""
        drops = dict.fromkeys(('dropped_cells', 'zeroed_cells', 'dropped_block'), self.dropped)
        return {**drops, 'map_noise': self.noises}

    def __call__(self, batch: dict) -> dict[str, Tensor]:
        """Whether the linear head is right, (B, repeats * levels), by kind."""
        images = self.encoder.data_preprocessor(batch, False)['inputs']
        local_map = read_out(self.encoder.network, images).local_map.float()
        labels = batch_labels(batch).to(images.device)
        pooled = [self._pool(local_map, batch['inputs'], number) for number in range(self.repeats)]
        return {
            kind: torch.stack([self._classify(each) == labels for tries in pooled for each in tries[kind]], dim=1)
            for kind in self.kinds
        }

    def _classify(self, features: Tensor) -> Tensor:
        return self.classifiers.logits(features).argmax(1)

    def _pool(self, local_map: Tensor, pictures: Tensor, number: int) -> dict[str, list[Tensor]]:
        size = local_map.shape[2:]
        generators = [picture_generator(picture.numpy(), self.seed, number) for picture in pictures]
        scores, positions, noise = (
            torch.from_numpy(np.stack([draw(each) for each in generators])).to(local_map)
            for draw in (
                lambda each: each.random(size, np.float32),
                lambda each: each.random(2, np.float32),
                lambda each: each.standard_normal(local_map.shape[1:], np.float32),
            )
        )
        survivors = [drop_random_cells(scores, share) for share in self.dropped]
        return dict(
            dropped_cells=[masked_mean(local_map, keep) for keep in survivors],
            zeroed_cells=[masked_mean(local_map, keep, over_survivors=False) for keep in survivors],
            dropped_block=[masked_mean(local_map, drop_block(positions, size, share)) for share in self.dropped],
            map_noise=[noisy_mean(local_map, noise, strength) for strength in self.noises],
        )


@dataclass
class PixelAttack:
    """Attacks the linear head through the network by projected gradient descent, from a random start.

    Args:
        encoder: The frozen network.
        classifiers: Those that learnt from the network's own representation.
        epsilons: Largest changes of a pixel, of 0 ... 1.
        step_sizes: Steps as shares of the largest change.
        steps: Numbers of steps.
        seed: Seed of the start, which also depends on the picture.
    """

    encoder: FrozenEncoder
    classifiers: FrozenClassifiers
    epsilons: Sequence[float]
    step_sizes: Sequence[float]
    steps: Sequence[int]
    seed: int = 0

    @property
    def kinds(self) -> dict[str, Sequence[float]]:
        """Largest changes by number and size of the steps."""
        return {f'attack_{steps}x{size:g}': self.epsilons for steps in self.steps for size in self.step_sizes}

    def __call__(self, batch: dict) -> dict[str, Tensor]:
        """Whether the linear head is right in spite of the attack, (B, changes), by kind."""
        pixels = self._to_pixels(self.encoder.data_preprocessor(batch, False)['inputs'])
        labels = batch_labels(batch).to(pixels.device)
        drawn = [picture_generator(picture.numpy(), self.seed).random(picture.shape) for picture in batch['inputs']]
        start = 2 * torch.from_numpy(np.stack(drawn)).to(pixels) - 1
        settings = [(steps, size) for steps in self.steps for size in self.step_sizes]
        return {
            kind: torch.stack([self._withstands(pixels, labels, start, *setting, each) for each in epsilons], dim=1)
            for (kind, epsilons), setting in zip(self.kinds.items(), settings, strict=True)
        }

    def _withstands(
        self, pixels: Tensor, labels: Tensor, start: Tensor, steps: int, size: float, epsilon: float
    ) -> Tensor:
        attacked = pgd_attack(self._logits, pixels, labels, epsilon, size * epsilon, steps, start)
        return self._logits(attacked).argmax(1) == labels

    def _logits(self, pixels: Tensor) -> Tensor:
        preprocessor = self.encoder.data_preprocessor
        images = (255 * pixels - preprocessor.mean) / preprocessor.std
        return self.classifiers.logits(read_out(self.encoder.network, images).global_features.float())

    def _to_pixels(self, images: Tensor) -> Tensor:
        preprocessor = self.encoder.data_preprocessor
        return ((images * preprocessor.std + preprocessor.mean) / 255).clamp(0, 1)


def batch_labels(batch: dict) -> Tensor:
    """Classes of a collated batch, int64, (B,)."""
    return torch.cat([sample.gt_label for sample in batch['data_samples']])
