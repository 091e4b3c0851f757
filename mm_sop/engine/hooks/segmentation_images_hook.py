"""Draws predicted label maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.datasets.transforms.loading import LoadImage
from mm_sop.report.montage import montage, to_png
from mm_sop.report.predictions import segmentation_row
from mm_sop.utils.files import write_atomically

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample


@HOOKS.register_module()
class SegmentationImagesHook(Hook):
    """Draws the first images of every evaluation with their true and predicted labels.

    The main process writes ``segmentation.png`` into the work directory and replaces that of the previous evaluation.

    Args:
        num_images: How many images to draw. Defaults to 8.
        side: Longer side of an image in pixels. Defaults to 256.
    """

    priority = 'VERY_LOW'

    def __init__(self, num_images: int = 8, side: int = 256) -> None:
        self.num_images = num_images
        self.side = side
        self._load = LoadImage(channel_order='rgb')
        self._samples: list[DetDataSample] = []

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: Sequence['DetDataSample'] | None = None
    ) -> None:
        self._samples += (outputs or ())[: self.num_images - len(self._samples)]

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._draw(runner, runner.val_dataloader.dataset.metainfo)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._draw(runner, runner.test_dataloader.dataset.metainfo)

    def _draw(self, runner: Runner, metainfo: dict) -> None:
        samples, self._samples = self._samples, []
        if not is_main_process():
            return
        rows = []
        for sample in samples:
            image = self._load(dict(img_path=sample.img_path))['img']
            truth, prediction = (
                field.sem_seg.squeeze(0).cpu().numpy() for field in (sample.gt_sem_seg, sample.pred_sem_seg)
            )
            rows.append(segmentation_row(image, truth, prediction, metainfo['classes'], metainfo['palette']))
        write_atomically(Path(runner.work_dir, 'segmentation.png'), to_png(montage(rows, self.side)))
