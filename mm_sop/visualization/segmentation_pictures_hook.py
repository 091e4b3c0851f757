"""Pictures of predicted label maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.datasets.transforms.loading import LoadPicture
from mm_sop.engine.atomic import write_atomically
from mm_sop.visualization.montage import Tile, montage, to_png
from mm_sop.visualization.segmentation import segmentation_row


@HOOKS.register_module()
class SegmentationPicturesHook(Hook):
    """Draws the first pictures of every evaluation with their true and predicted labels.

    The main process writes ``segmentation.png`` into the work directory, in place of that of the evaluation before.

    Args:
        num_pictures: Number of pictures. Defaults to 8.
        side: Longer side of a picture in pixels. Defaults to 256.
    """

    priority = 'VERY_LOW'

    def __init__(self, num_pictures: int = 8, side: int = 256) -> None:
        self.num_pictures = num_pictures
        self.side = side
        self._load = LoadPicture(channel_order='rgb')
        self._samples: list[DetDataSample] = []

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: Sequence[DetDataSample] | None = None
    ) -> None:
        """Keep the first predictions."""
        self._samples += outputs[: self.num_pictures - len(self._samples)]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw what was kept."""
        self._draw(runner, runner.val_dataloader.dataset.metainfo)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: Sequence[DetDataSample] | None = None
    ) -> None:
        """Keep the first predictions."""
        self.after_val_iter(runner, batch_idx, data_batch, outputs)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw what was kept."""
        self._draw(runner, runner.test_dataloader.dataset.metainfo)

    def _draw(self, runner: Runner, metainfo: dict) -> None:
        samples, self._samples = self._samples, []
        if is_main_process():
            rows = [self._row(sample, metainfo) for sample in samples]
            write_atomically(Path(runner.work_dir, 'segmentation.png'), to_png(montage(rows, self.side)))

    def _row(self, sample: DetDataSample, metainfo: dict) -> list[Tile]:
        picture = self._load(dict(img_path=sample.img_path))['img']
        truth, prediction = (_to_array(sample, field) for field in ('gt_sem_seg', 'pred_sem_seg'))
        return segmentation_row(picture, truth, prediction, metainfo['classes'], metainfo['palette'])


def _to_array(sample: DetDataSample, field: str) -> np.ndarray:
    return sample.get(field).sem_seg.squeeze(0).cpu().numpy()
