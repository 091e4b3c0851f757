"""Disturbances that depend on the network: internal corruption, attacks and guided occlusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mm_sop.datasets.transforms.perturb import OCCLUSION_GRID, image_generator
from mm_sop.encoders.encoder import Encoder
from mm_sop.evaluation.classification.logistic import FrozenClassifiers
from mm_sop.functional.attacks import pgd_attack
from mm_sop.functional.masking import drop_block, drop_lowest_cells, masked_mean, noisy_mean
from mm_sop.models.utils.readout import read_out


@dataclass
class InternalCorruption:
    """Classification of the mean of the last map after dropping cells or adding noise (CO-SSL).

    Draws depend on the seed and the image; a larger fraction drops a superset of the cells.

    Args:
        encoder: The frozen network.
        classifiers: Classifiers trained on the mean of the undisturbed map.
        dropped: Fractions of dropped cells.
        noises: Standard deviations of the noise, relative to that of the map.
        repeats: Number of draws.
        seed: Seed of the draws.
    """

    encoder: Encoder
    classifiers: FrozenClassifiers
    dropped: Sequence[float]
    noises: Sequence[float]
    repeats: int = 3
    seed: int = 0

    @property
    def kinds(self) -> dict[str, Sequence[float]]:
        """Levels by kind: cells excluded from the mean, or set to zero; an excluded block; noise."""
        drops = dict.fromkeys(('dropped_cells', 'zeroed_cells', 'dropped_block'), self.dropped)
        return {**drops, 'map_noise': self.noises}

    def __call__(self, batch: dict) -> dict[str, Tensor]:
        """Whether the prediction of the linear head is right, (B, repeats * levels), by kind."""
        images = self.encoder.data_preprocessor(batch, False)['inputs']
        local_map = read_out(self.encoder.network, images).local_map.float()
        labels = batch_labels(batch).to(images.device)
        pooled = [self._pool(local_map, batch['inputs'], number) for number in range(self.repeats)]
        logits = self.classifiers.logits
        return {
            kind: torch.stack([logits(each).argmax(1) == labels for draw in pooled for each in draw[kind]], dim=1)
            for kind in self.kinds
        }

    def _pool(self, local_map: Tensor, images: Tensor, number: int) -> dict[str, list[Tensor]]:
        shape, size = local_map.shape[1:], local_map.shape[2:]
        draws = []
        for image in images:
            draw = image_generator(image.numpy(), self.seed, number)
            draws.append((draw.random(size, 'f4'), draw.random(2, 'f4'), draw.standard_normal(shape, 'f4')))
        scores, positions, noise = (torch.from_numpy(np.stack(each)).to(local_map) for each in zip(*draws, strict=True))
        survivors = [drop_lowest_cells(scores, fraction) for fraction in self.dropped]
        return dict(
            dropped_cells=[masked_mean(local_map, keep) for keep in survivors],
            zeroed_cells=[masked_mean(local_map, keep, over_survivors=False) for keep in survivors],
            dropped_block=[masked_mean(local_map, drop_block(positions, size, fraction)) for fraction in self.dropped],
            map_noise=[noisy_mean(local_map, noise, strength) for strength in self.noises],
        )


@dataclass
class PixelAttack:
    """Attack on the linear head through the network: projected gradient descent from a random start.

    Args:
        encoder: The frozen network.
        classifiers: Classifiers trained on the global representation.
        epsilons: Largest changes of a pixel, in units of the range 0 ... 1.
        step_sizes: Step sizes relative to the largest change.
        steps: Numbers of steps.
        seed: Seed of the start, which also depends on the image.
    """

    encoder: Encoder
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
        """Whether the prediction of the linear head is right under attack, (B, changes), by kind."""
        pixels = to_pixels(self.encoder, batch)
        labels = batch_labels(batch).to(pixels.device)
        drawn = [image_generator(image.numpy(), self.seed).random(image.shape) for image in batch['inputs']]
        start = 2 * torch.from_numpy(np.stack(drawn)).to(pixels) - 1
        logits = partial(global_logits, self.encoder, self.classifiers)
        right = {}
        for kind, (steps, size) in zip(self.kinds, product(self.steps, self.step_sizes), strict=True):
            attacked = (pgd_attack(logits, pixels, labels, each, size * each, steps, start) for each in self.epsilons)
            right[kind] = torch.stack([logits(images).argmax(1) == labels for images in attacked], dim=1)
        return right


@dataclass
class GuidedOcclusion:
    """Occlusion of the patches that a transformer attends to most, or least.

    Naseer et al., Intriguing Properties of Vision Transformers, section 3: salient and non-salient patch drop.

    Args:
        encoder: The frozen network.
        classifiers: Classifiers trained on the global representation.
        attend: Maps images, RGB of 0 ... 1, to the attention of [CLS] to the patches, (B, heads, h, w).
        fractions: Fractions of occluded patches of a grid of 14 x 14.
    """

    encoder: Encoder
    classifiers: FrozenClassifiers
    attend: Callable[[Tensor], Tensor]
    fractions: Sequence[float]

    @property
    def kinds(self) -> dict[str, Sequence[float]]:
        """Fractions by kind of patches."""
        return dict.fromkeys(('salient_occlusion', 'non_salient_occlusion'), self.fractions)

    @torch.no_grad()
    def __call__(self, batch: dict) -> dict[str, Tensor]:
        """Whether the prediction of the linear head is right, (B, fractions), by kind."""
        pixels = to_pixels(self.encoder, batch)
        labels = batch_labels(batch).to(pixels.device)
        grid = (OCCLUSION_GRID, OCCLUSION_GRID)
        attention = self.attend(pixels).mean(1, keepdim=True)
        salience = interpolate(attention, grid, mode='bilinear', antialias=True)[:, 0]
        return {
            kind: torch.stack([self._classify(pixels, scores, each) == labels for each in self.fractions], dim=1)
            for kind, scores in zip(self.kinds, (-salience, salience), strict=True)
        }

    def _classify(self, pixels: Tensor, scores: Tensor, fraction: float) -> Tensor:
        keep = drop_lowest_cells(scores, fraction)
        rows, columns = (torch.arange(side, device=pixels.device) * OCCLUSION_GRID // side for side in pixels.shape[2:])
        occluded = pixels * keep[:, rows][:, :, columns][:, None]
        return global_logits(self.encoder, self.classifiers, occluded).argmax(1)


def to_pixels(encoder: Encoder, batch: dict) -> Tensor:
    """Images of a collated batch, RGB of 0 ... 1, (B, 3, H, W), on the encoder's device."""
    preprocessor = encoder.data_preprocessor
    images = preprocessor(batch, False)['inputs']
    return ((images * preprocessor.std + preprocessor.mean) / 255).clamp(0, 1)


def normalize_pixels(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Normalize pixels for the network, with gradients; the inverse of :func:`to_pixels`."""
    preprocessor = encoder.data_preprocessor
    return (255 * pixels - preprocessor.mean) / preprocessor.std


def global_logits(encoder: Encoder, classifiers: FrozenClassifiers, pixels: Tensor) -> Tensor:
    """Logits of the linear head on the global representation of images, RGB of 0 ... 1, with gradients."""
    readout = read_out(encoder.network, normalize_pixels(encoder, pixels))
    return classifiers.logits(readout.global_features.float())


def batch_labels(batch: dict) -> Tensor:
    """Classes of a collated batch, int64, (B,)."""
    return torch.cat([sample.gt_label for sample in batch['data_samples']])
