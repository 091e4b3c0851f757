"""Data preprocessor of all pretraining configs."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.functional.augmentation import augment


@MODELS.register_module()
class MultiViewDataPreprocessor(SelfSupDataPreprocessor):
    """Converts the views of a batch, uint8, to normalized float32 images, as MMPretrain's ``SelfSupDataPreprocessor``.

    MMPretrain's reorders channels by a list of indices, which is copied to the device in every step, and by default
    waits for the device whenever it copies a view. ``pin_memory`` of the loader lets copies overlap with computation.

    Args:
        compile_augmentation: Fuse the augmentation of views by ``torch.compile``: less traffic of memory, seconds to
            minutes of compilation in the first step. Some values change by a few gray levels.
        non_blocking: Whether copies to the device do not wait for it.
        **kwargs: Arguments of ``SelfSupDataPreprocessor``.
    """

    def __init__(self, *args, compile_augmentation: bool = False, non_blocking: bool = True, **kwargs) -> None:
        super().__init__(*args, non_blocking=non_blocking, **kwargs)
        self._augment = torch.compile(augment, dynamic=False) if compile_augmentation else augment

    def forward(self, data: dict, training: bool = False) -> dict:
        """Convert ``inputs``, (B, C, H, W) or a list of such views; ``data_samples`` pass through.

        If there are ``augmentations``, parameters (B, 12) for each view as in
        :func:`~mm_sop.functional.augmentation.augment`, they are applied first, and leave the batch.
        """
        data = self.cast_data(data)
        views = data['inputs']
        several = isinstance(views, list | tuple)
        if 'augmentations' in data:
            parameters = data.pop('augmentations')
            views = self._augment_views(views if several else [views], parameters if several else [parameters])
            views = views if several else views[0]
        data['inputs'] = [*map(self._convert, views)] if several else self._convert(views)
        return data

    def _augment_views(self, views: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """Augment views of one size together, in a tenth of the operations if there are ten of them."""
        if len(views) != len(parameters):
            raise ValueError(
                f'augmentations must be one (B, 12) tensor for each of the {len(views)} views of inputs, '
                f'got {len(parameters)}'
            )
        groups = defaultdict(list)
        for number, view in enumerate(views):
            groups[view.shape[1:]].append(number)
        augmented = list(views)
        for numbers in groups.values():
            joint_views, joint_parameters = (torch.cat([all_[n] for n in numbers]) for all_ in (views, parameters))
            joint = self._augment(joint_views, joint_parameters)
            for number, view in zip(numbers, joint.split([len(views[n]) for n in numbers]), strict=True):
                augmented[number] = view
        return augmented

    def _convert(self, images: Tensor) -> Tensor:
        images = (images.flip(1) if self._channel_conversion else images).float()
        return (images - self.mean) / self.std if self._enable_normalize else images
