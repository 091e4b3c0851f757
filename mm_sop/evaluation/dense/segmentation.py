"""Metric of semantic segmentation."""

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmpretrain.registry import METRICS
from torch import Tensor

from mm_sop.functional import class_areas, segmentation_scores


@METRICS.register_module()
class SegmentationMetric(BaseMetric):
    """Mean intersection over union, mean accuracy of the classes and accuracy of the pixels, in percent.

    Areas are integers, summed over the whole dataset before division. Classes that neither occur nor are predicted are
    ignored. MMDetection's ``SemSegMetric`` gives the mean accuracy of the classes as ``aAcc``, and rounds; this metric
    gives the accuracy of the pixels, without rounding.

    Args:
        classwise: Whether to add the IoU of every class. Defaults to False.
        ignore_index: Value of ignored pixels. Defaults to 255.
        **kwargs: Arguments of MMEngine's BaseMetric.
    """

    def __init__(self, classwise: bool = False, ignore_index: int = 255, **kwargs) -> None:
        super().__init__(**kwargs)
        self.classwise = classwise
        self.ignore_index = ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the areas of a batch of samples with ``pred_sem_seg`` and ``gt_sem_seg``."""
        for sample in data_samples:
            prediction = sample['pred_sem_seg']['sem_seg'].cpu()
            target = sample['gt_sem_seg']['sem_seg'].cpu()
            self.results.append(class_areas(prediction, target, len(self.dataset_meta['classes']), self.ignore_index))

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Compute ``mIoU``, ``mAcc`` and ``aAcc`` from the areas of all images, in percent.

        ``classwise`` adds the ``IoU_<class>`` of existing classes.
        """
        scores = {name: 100 * value for name, value in segmentation_scores(torch.stack(results).sum(0)).items()}
        iou, accuracy, classes = scores['iou'], scores['accuracy'], self.dataset_meta['classes']
        print_log(f'IoU and accuracy of the classes in percent:\n{format_classes(classes, iou, accuracy)}', 'current')
        metrics = dict(mIoU=float(iou.nanmean()), mAcc=float(accuracy.nanmean()), aAcc=float(scores['pixel_accuracy']))
        if self.classwise:
            pairs = zip(classes, iou, strict=True)
            metrics.update({f'IoU_{name}': float(value) for name, value in pairs if not value.isnan()})
        return metrics


def format_classes(classes: Sequence[str], iou: Tensor, accuracy: Tensor) -> str:
    """Format one line for each class, the best IoU first and missing classes last."""
    width = max(map(len, classes))
    order = iou.nan_to_num(-1).argsort(descending=True, stable=True)
    return '\n'.join(f'  {classes[label]:<{width}} {iou[label]:6.2f} {accuracy[label]:6.2f}' for label in order)
