"""Semantic segmentation with any encoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mm_sop.models.heads.segmentation_heads import resize

if TYPE_CHECKING:
    # Loads all models of MMDetection.
    from mmdet.structures import DetDataSample


@MODELS.register_module()
class SemanticSegmentor(BaseModel):
    """Encoder, optional neck, and a head that classifies every pixel.

    Data samples are those of MMDetection: labels are ``gt_sem_seg``, predictions ``pred_sem_seg``.

    Args:
        backbone: Encoder whose outputs are feature maps.
        head: :class:`LinearSegmentationHead` or :class:`FPNSegmentationHead`.
        frozen: Whether to freeze the encoder: no gradients, and evaluation mode.
        window: ``size`` and ``stride``, (height, width) in pixels, of a window that slides over larger images in
            prediction; logits are averaged where windows overlap. Defaults to None, the whole image.
        data_preprocessor: Usually MMDetection's ``DetDataPreprocessor`` with ``pad_seg=True``.

    Raises:
        ValueError: The stride is larger than the window: there would be pixels without a prediction.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        frozen: bool = False,
        window: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if window and any(step > side for step, side in zip(window['stride'], window['size'], strict=True)):
            raise ValueError(f'window: the stride {window["stride"]} must not be larger than the size {window["size"]}')
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck else nn.Identity()
        self.head = MODELS.build(head)
        self.window = window or {}
        self.frozen = frozen
        if frozen:
            self.backbone.requires_grad_(False)
            self.backbone.eval()

    def train(self, mode: bool = True) -> 'SemanticSegmentor':
        """Set the mode of all modules except a frozen encoder."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def extract_feat(self, images: Tensor) -> Sequence[Tensor]:
        """Compute feature maps of normalized images, (B, C, H, W), the finest first."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(images)
        return self.neck(features)

    def forward(
        self, inputs: Tensor, data_samples: 'Sequence[DetDataSample]' = (), mode: str = 'tensor'
    ) -> 'dict[str, Tensor] | Sequence[DetDataSample] | Tensor':
        """Compute losses, predictions or logits of normalized images, (B, C, H, W).

        Returns:
            In mode ``'loss'`` the losses; in mode ``'predict'`` the samples with ``pred_sem_seg`` at the size of the
            original images; in mode ``'tensor'`` logits, (B, C, h, w), at the resolution of the head.

        Raises:
            ValueError: The mode is unknown.
        """
        if mode == 'loss':
            labels = torch.cat([sample.gt_sem_seg.sem_seg for sample in data_samples])
            return self.head.loss(self.extract_feat(inputs), labels)
        if mode == 'predict':
            return self._predict(inputs, data_samples)
        if mode == 'tensor':
            return self.head(self.extract_feat(inputs))
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def _predict(self, images: Tensor, data_samples: 'Sequence[DetDataSample]') -> 'Sequence[DetDataSample]':
        """Crop the padding, resize to the original size and take the best class."""
        logits = self._slide(images) if self.window else self._logits(images)
        for sample, scores in zip(data_samples, logits, strict=True):
            height, width = sample.img_shape[:2]
            resized = resize(scores[None, :, :height, :width], sample.ori_shape[:2])
            sample.pred_sem_seg = PixelData(sem_seg=resized.argmax(1))
        return data_samples

    def _logits(self, images: Tensor) -> Tensor:
        """Logits at the resolution of the images."""
        return resize(self.head(self.extract_feat(images)).float(), images.shape[-2:])

    def _slide(self, images: Tensor) -> Tensor:
        """Mean logits of overlapping windows."""
        sides = zip(images.shape[-2:], self.window['size'], self.window['stride'], strict=True)
        rows, columns = (window_slices(*side) for side in sides)
        total = images.new_zeros(len(images), self.head.num_classes, *images.shape[-2:])
        count = images.new_zeros(images.shape[-2:])
        for area in ((..., row, column) for row in rows for column in columns):
            total[area] += self._logits(images[area])
            count[area] += 1
        return total / count


def window_slices(length: int, size: int, stride: int) -> list[slice]:
    """Windows along a side of an image; the last one ends with the side, and a side shorter than ``size`` is one."""
    starts = [*range(0, length - size, stride), max(length - size, 0)]
    return [slice(start, start + size) for start in starts]
