"""Average precision of a trained detector, and its predictions on images."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mm_sop.datasets.labeled.coco_checks import class_names
from mm_sop.encoders.checkpoint import load_complete, read_checkpoint
from mm_sop.engine.preflight import check_annotations, check_operators
from mm_sop.engine.runner import PretrainRunner
from mm_sop.utils.config import leaf_datasets
from mm_sop.utils.failures import LaunchError
from mm_sop.utils.files import printable, write_atomically
from mm_sop.utils.modules import unwrap_model

_COLUMNS = dict(zip(('', '50', '75', 's', 'm', 'l'), ('AP', 'AP50', 'AP75', 'small', 'medium', 'large'), strict=True))


def evaluate_detector(config: Config, checkpoint: str | Path, work_dir: str | Path, trusted: bool = False) -> dict:
    """Evaluate a detector on the test data of a config.

    Writes ``<name of the checkpoint>.json`` and ``.md`` into the work directory. The config has the ``launcher`` of the
    processes. Code in the checkpoint may run if it is ``trusted``.

    Returns:
        ``config``, ``checkpoint``, ``checkpoint_sha256``, ``images`` and ``metrics`` by name.

    Raises:
        LaunchError: MMCV has no compiled operators, or the config has no test data.
        AnnotationError: The test annotations have a fault, or other classes than the detector.
        WeightsError: The checkpoint does not contain exactly the tensors of this detector.
    """
    if not config.get('test_dataloader'):
        raise LaunchError(f'{config.filename} has no test_dataloader: expected the config of a detector or segmentor')
    check_operators(config)
    check_annotations(config, 'test')
    config.work_dir = str(work_dir)
    config.load_from, config.resume = None, False
    runner = PretrainRunner.from_cfg(config)
    weights = read_checkpoint(checkpoint, trusted)
    load_complete(unwrap_model(runner.model), weights.state_dict(), str(checkpoint))
    metrics = runner.test()
    result = dict(
        config=Path(config.filename or 'config').name,
        checkpoint=str(checkpoint),
        checkpoint_sha256=weights.sha256,
        images=len(runner.test_dataloader.dataset),
        metrics={name: float(value) for name, value in metrics.items()},
    )
    if is_main_process():
        path = Path(work_dir, Path(checkpoint).stem)
        write_atomically(path.with_suffix('.json'), json.dumps(result, indent=1))
        write_atomically(path.with_suffix('.md'), format_result(result))
    return result


def format_result(result: Mapping) -> str:
    """Format a result of :func:`evaluate_detector` as Markdown, average precision in percent.

    Boxes and masks of COCO become one row each, as does every other metric.
    """
    found = {}
    for name, value in result['metrics'].items():
        match = re.fullmatch(r'coco/(bbox|segm)_mAP_?(\w*)', name)
        if match:
            found[match[1], match[2]] = value
    rows = [['', *_COLUMNS.values()], ['---', *['---:'] * len(_COLUMNS)]]
    for task, title in (('bbox', 'boxes'), ('segm', 'masks')):
        if (task, '') in found:
            # COCO reports -1 if there is no object of a size.
            values = [found.get((task, column), -1) for column in _COLUMNS]
            rows.append([title, *('–' if value < 0 else f'{100 * value:.1f}' for value in values)])
    if not found:
        rows = [['metric', 'value'], ['---', '---:']]
        rows += [[name, f'{value:.4g}'] for name, value in result['metrics'].items()]
    table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
    return f'# {result["config"]}, {result["checkpoint"]}\n\n{result["images"]} images\n\n{table}\n'


def load_detector(
    config: Config, checkpoint: str | Path, device: str, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a detector from the config of its training and load all of its weights, or ``state`` if read already.

    Returns:
        The detector in evaluation mode, with ``cfg`` and ``dataset_meta`` as :mod:`mmdet.apis` expects them.

    Raises:
        LaunchError: The config does not describe a detector, or MMCV has no compiled operators.
        WeightsError: The checkpoint does not contain exactly the tensors of this detector.
    """
    check_operators(config)
    if config.get('default_scope') != 'mmdet':
        raise LaunchError(f'{checkpoint} does not contain a detector of MMDetection according to its config')
    from mmdet.registry import MODELS

    init_default_scope(config.default_scope)
    model = revert_sync_batchnorm(MODELS.build(config.model))
    load_complete(model, read_checkpoint(checkpoint).state_dict() if state is None else state, str(checkpoint))
    model.cfg = config
    model.dataset_meta = dict(classes=class_names(leaf_datasets(config.test_dataloader.dataset)[0]))
    return model.to(device).eval()


def detect(model: nn.Module, image: np.ndarray, min_score: float) -> list[dict]:
    """Detect the objects in an image.

    Args:
        model: From :func:`load_detector`.
        image: BGR, uint8, (h, w, 3).
        min_score: In [0, 1].

    Returns:
        The objects by descending score: ``class``, ``score``, ``box`` (x1, y1, x2, y2 in pixels) and, if the detector
        predicts masks, ``mask`` (h, w), bool.
    """
    # This imports MMCV's compiled operators, which only detectors need.
    from mmdet.apis import inference_detector
    from mmdet.utils import get_test_pipeline_cfg

    # The image is decoded already, whatever the pipeline uses to load files.
    steps = [dict(type='mmdet.LoadImageFromNDArray'), *get_test_pipeline_cfg(model.cfg)[1:]]
    found = inference_detector(model, image, Compose(steps)).pred_instances.cpu().numpy()
    meta: Any = model.dataset_meta
    objects = []
    for index in np.argsort(-found.scores, kind='stable'):
        if found.scores[index] < min_score:
            break
        item = {
            'class': meta['classes'][found.labels[index]],
            'score': round(float(found.scores[index]), 4),
            'box': [round(float(value), 1) for value in found.bboxes[index]],
        }
        if 'masks' in found:
            item['mask'] = found.masks[index].astype(bool)
        objects.append(item)
    return objects


def summarize(detections: Mapping[str, Sequence[dict]]) -> str:
    """Format the objects of :func:`detect` by image as text, one line per image."""
    lines = []
    for path, objects in detections.items():
        names = ', '.join(f'{item["class"]} {item["score"]:.2f}' for item in objects)
        lines.append(f'{printable(path)}: {names or "nothing"}')
    return '\n'.join(lines)
