"""Where views are augmented: in the processes that load them, or on the device."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

_VIEWS = ('FastMultiView', 'PairMultiView')


def place_augmentation(cfg: Config) -> None:
    """Apply ``cfg.augment_on`` to the views in the pipelines of the training data.

    ``'host'`` and ``'device'`` name the place; ``'auto'`` means the device if there is an accelerator. Without the key
    the pipelines decide.

    Raises:
        ValueError: The value is none of these, or ``'device'`` where the config's views or its data preprocessor
            cannot be augmented there.
    """
    place = cfg.get('augment_on')
    if place is None:
        return
    if place not in ('host', 'device', 'auto'):
        raise ValueError(f"augment_on must be 'host', 'device' or 'auto', got {place!r}")
    chosen = place if place != 'auto' else 'host' if get_device() == 'cpu' else 'device'
    views = [*_find_views(cfg.get('train_dataloader'))]
    if chosen == 'device' and (missing := _missing_for_device(cfg, views)):
        if place == 'device':
            raise ValueError(f"augment_on='device' needs {missing}; use 'host' or 'auto'")
        print_log(f'Views are augmented on the host: the device needs {missing}', 'current')
        chosen = 'host'
    for view in views:
        view['augment_on'] = chosen


def _missing_for_device(cfg: Config, views: list[dict]) -> str | None:
    if not views:
        return 'a pipeline with FastMultiView or PairMultiView'
    preprocessor = cfg.get('data_preprocessor') or cfg.model.get('data_preprocessor') or {}
    if str(preprocessor.get('type')).split('.')[-1] != 'MultiViewDataPreprocessor':
        return "data_preprocessor=dict(type='MultiViewDataPreprocessor', ...)"
    return None


def _find_views(tree: Any) -> Iterator[dict]:
    if isinstance(tree, dict):
        if str(tree.get('type')).split('.')[-1] in _VIEWS:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for branch in tree:
            yield from _find_views(branch)
