"""Average precision of a trained detector, and its predictions on pictures."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from mm_sop.datasets.coco_checks import class_names
from mm_sop.datasets.files import printable
from mm_sop.engine.atomic import write_atomically
from mm_sop.engine.launch import LaunchError, check_annotations, check_operators, leaf_datasets, prepare_dist
from mm_sop.engine.utils import unwrap_model
from mm_sop.engine.weights import load_complete, read_state_dict
from mm_sop.evaluation.encoders import hash_file

_COLUMNS = dict(zip(('', '50', '75', 's', 'm', 'l'), ('AP', 'AP50', 'AP75', 'small', 'medium', 'large'), strict=True))


def evaluate_detector(config: Config, checkpoint: str | Path, work_dir: str | Path, trusted: bool = False) -> dict:
    """Measure a detector on the test data of a config.

    ``<name of the checkpoint>.json`` and ``.md`` are written into the work directory.

    Args:
        config: The config; ``launcher`` says whether there are several processes.
        checkpoint: Weights of the whole detector.
        work_dir: Folder of the results.
        trusted: Whether code in the checkpoint may run.

    Returns:
        ``config``, ``checkpoint``, ``checkpoint_sha256``, ``pictures`` and ``metrics`` by name.

    Raises:
        LaunchError: MMCV has no compiled operators, or the config no test data.
        AnnotationError: The test annotations have a fault, or other classes than the detector.
        WeightsError: The checkpoint does not hold exactly this detector.
    """
    if not config.get('test_dataloader'):
        raise LaunchError(f'{config.filename} has no test_dataloader: expected the config of a detector or segmentor')
    check_operators(config)
    check_annotations(config, 'test')
    config.work_dir = str(work_dir)
    config.load_from, config.resume = None, False
    prepare_dist(config)
    runner = Runner.from_cfg(config)
    state = read_state_dict(checkpoint, trusted=trusted)
    load_complete(unwrap_model(runner.model), state, str(checkpoint))
    metrics = runner.test()
    result = dict(
        config=Path(config.filename or 'config').name,
        checkpoint=str(checkpoint),
        checkpoint_sha256=hash_file(checkpoint),
        pictures=len(runner.test_dataloader.dataset),
        metrics={name: float(value) for name, value in metrics.items()},
    )
    if is_main_process():
        path = Path(work_dir, Path(checkpoint).stem)
        write_atomically(path.with_suffix('.json'), json.dumps(result, indent=1))
        write_atomically(path.with_suffix('.md'), format_result(result))
    return result


def format_result(result: Mapping) -> str:
    """Set a result as Markdown, average precision in percent.

    Args:
        result: From :func:`evaluate_detector`. Boxes and masks of COCO become rows; other metrics a row each.
    """
    tasks = dict(bbox='boxes', segm='masks')
    found = {}
    for name, value in result['metrics'].items():
        match = re.fullmatch(r'coco/(bbox|segm)_mAP_?(\w*)', name)
        if match:
            found[match[1], match[2]] = value
    rows = [['', *_COLUMNS.values()], ['---', *['---:'] * len(_COLUMNS)]]
    for task, title in tasks.items():
        if (task, '') in found:
            rows.append([title, *(_percent(found.get((task, column), -1)) for column in _COLUMNS)])
    if not found:
        rows = [['metric', 'value'], ['---', '---:']]
        rows += [[name, f'{value:.4g}'] for name, value in result['metrics'].items()]
    table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
    return f'# {result["config"]}, {result["checkpoint"]}\n\n{result["pictures"]} pictures\n\n{table}\n'


def _percent(value: float) -> str:
    """COCO gives -1 where there is no object of a size."""
    return '–' if value < 0 else f'{100 * value:.1f}'


def load_detector(
    config: Config, checkpoint: str | Path, device: str, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a detector and load all of its weights.

    Args:
        config: The config of its training.
        checkpoint: The weights.
        device: Where it goes.
        state: Tensors of the checkpoint, if it has been read already.

    Returns:
        The detector in evaluation mode, with ``cfg`` and ``dataset_meta`` as :mod:`mmdet.apis` expects them.

    Raises:
        LaunchError: The config is of something else, or MMCV has no compiled operators.
        WeightsError: The checkpoint does not hold exactly this detector.
    """
    check_operators(config)
    if config.get('default_scope') != 'mmdet':
        raise LaunchError(f'{checkpoint} holds no detector of MMDetection, by its config')
    init_default_scope(config.default_scope)
    model = revert_sync_batchnorm(MODELS.build(config.model))
    load_complete(model, read_state_dict(checkpoint) if state is None else state, str(checkpoint))
    model.cfg = config
    model.dataset_meta = dict(classes=class_names(leaf_datasets(config.test_dataloader.dataset)[0]))
    return model.to(device).eval()


def detect(model: nn.Module, picture: np.ndarray, min_score: float) -> list[dict]:
    """Find objects in a picture.

    Args:
        model: From :func:`load_detector`.
        picture: BGR, uint8, (h, w, 3).
        min_score: Least score, 0 ... 1.

    Returns:
        The objects by falling score: ``class``, ``score``, ``box`` (x1, y1, x2, y2 in pixels) and, where the detector
        gives it, ``mask`` (h, w), bool.
    """
    # Only detectors need MMCV's compiled operators, which it imports.
    from mmdet.apis import inference_detector
    from mmdet.utils import get_test_pipeline_cfg

    # Pictures are read in one way, however the pipeline would read their files.
    steps = [dict(type='mmdet.LoadImageFromNDArray'), *get_test_pipeline_cfg(model.cfg)[1:]]
    found = inference_detector(model, picture, Compose(steps)).pred_instances.cpu().numpy()
    classes = model.dataset_meta['classes']
    chosen = [index for index in np.argsort(-found.scores, kind='stable') if found.scores[index] >= min_score]
    objects = [
        {
            'class': classes[found.labels[index]],
            'score': round(float(found.scores[index]), 4),
            'box': [round(float(value), 1) for value in found.bboxes[index]],
        }
        for index in chosen
    ]
    if 'masks' in found:
        for item, index in zip(objects, chosen, strict=True):
            item['mask'] = found.masks[index].astype(bool)
    return objects


def summarise(detections: Mapping[str, Sequence[dict]]) -> str:
    """Set detections as text, a line for each picture.

    Args:
        detections: Objects by picture, from :func:`detect`.
    """
    lines = []
    for path, objects in detections.items():
        listing = ', '.join(f'{item["class"]} {item["score"]:.2f}' for item in objects)
        lines.append(f'{printable(path)}: {listing or "nothing"}')
    return '\n'.join(lines)
