"""Data preprocessor of all pretraining configs."""

from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class MultiViewDataPreprocessor(SelfSupDataPreprocessor):
    """Converts the views of a batch, uint8, to normalized float32 images, as MMPretrain's ``SelfSupDataPreprocessor``.

    MMPretrain's reorders channels by a list of indices, which is copied to the device in every step, and by default
    waits for the device whenever it copies a view. ``pin_memory`` of the loader lets copies overlap with computation.
    """

    def __init__(self, *args, non_blocking: bool = True, **kwargs) -> None:
        super().__init__(*args, non_blocking=non_blocking, **kwargs)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Convert ``inputs``, (B, C, H, W) or a list of such views; ``data_samples`` pass through."""
        data = self.cast_data(data)
        views = data['inputs']
        data['inputs'] = [*map(self._convert, views)] if isinstance(views, list | tuple) else self._convert(views)
        return data

    def _convert(self, images: Tensor) -> Tensor:
        images = (images.flip(1) if self._channel_conversion else images).float()
        return (images - self.mean) / self.std if self._enable_normalize else images
