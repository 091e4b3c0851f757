"""Reads, changes and inspects configs."""

import difflib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.registry import MODELS

from mm_sop.utils.failures import LaunchError

_PACKAGE = Path(__file__).resolve().parents[1]


def load_config(path: str | Path) -> Config:
    """Read a config file.

    Raises:
        LaunchError: It does not exist or cannot be read; similar names are suggested.
    """
    path = Path(path)
    if not path.is_file():
        # In a checkout the configs stand beside the package, after an installation inside it.
        beside = _PACKAGE.parent / 'configs'
        shipped = beside if beside.is_dir() else _PACKAGE / '.mim/configs'
        files = (*path.parent.glob('*.py'), *(file for file in shipped.rglob('*.py') if '_base_' not in file.parts))
        close = difflib.get_close_matches(str(path), sorted({os.path.relpath(file) for file in files}), cutoff=0.5)
        advice = f'; did you mean {" or ".join(close)}?' if close else ''
        raise LaunchError(f'no config {path}{advice}')
    try:
        return Config.fromfile(path)
    except (FileNotFoundError, SyntaxError, KeyError, TypeError) as error:
        raise LaunchError(f'cannot read the config {path}: {error}') from error


def merge_options(cfg: Config, options: dict) -> None:
    """Change a config in place by dotted keys. Warns about likely typos.

    Raises:
        LaunchError: A key does not fit the config, or changes a variable of the config file that is read no more.
    """
    for key, value in options.items():
        _refuse_variable(cfg, key)
        *path, name = key.split('.')
        parent: Any = cfg
        for part in path:
            parent = parent.get(part) if isinstance(parent, (Config, dict)) else None
        is_new = isinstance(parent, (Config, dict)) and name not in parent
        close = difflib.get_close_matches(name, list(parent)) if is_new else []
        if close:
            print_log(f'--cfg-options {key}: {name!r} is new in the config; did you mean {close[0]!r}?', 'current')
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise LaunchError(f'--cfg-options {key}={value} does not fit the config: {error}') from error


def _refuse_variable(cfg: Config, key: str) -> None:
    """Refuse to change a variable of the config file, whose value was copied when the file was read."""
    name, _, rest = key.partition('.')
    variable = cfg.get(name)
    # MMEngine's Runner lists the sections that it reads in its signature alone.
    sections = inspect.signature(Runner).parameters
    if name in sections or not isinstance(variable, (dict, list, str)):
        return
    copies = [copy for copy in _find_equal(cfg, variable) if copy.split('.')[0] in sections]
    if copies:
        instead = ' or '.join(f'{copy}.{rest}'.rstrip('.') for copy in copies)
        raise LaunchError(
            f'--cfg-options {key} would change nothing: {name} is a variable of the config, copied to where it counts. '
            f'Change {instead}'
        )


def _find_equal(tree: Config | dict | list, value: dict | list | str, path: str = '') -> Iterator[str]:
    """Find the dotted keys of equal values."""
    for key, each in enumerate(tree) if isinstance(tree, list) else tree.items():
        inner = f'{path}.{key}'.lstrip('.')
        if each == value:
            yield inner
        elif isinstance(each, (dict, list)):
            yield from _find_equal(each, value, inner)


def training_dataset(cfg: Config) -> dict | None:
    """Return the innermost config of the training data, without wrappers such as SeededDataset or RepeatDataset."""
    dataset = cfg.get('train_dataloader', {}).get('dataset')
    while dataset is not None and 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def leaf_datasets(dataset: dict | None) -> list[dict]:
    """Return the configs of all datasets in a config, without wrappers such as SeededDataset or ConcatDataset."""
    if not dataset:
        return []
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    return [dataset] if inner is None else [leaf for part in inner for leaf in leaf_datasets(part)]


def is_self_supervised(cfg: Config) -> bool:
    """Check whether the model of a config learns without labels."""
    model = MODELS.get(cfg.model.type) if isinstance(cfg.model.type, str) else cfg.model.type
    return isinstance(model, type) and issubclass(model, BaseSelfSupervisor)


def find_knn_settings(config: Config) -> dict | None:
    """Return the settings of a config's KNNHook, or None if it has none."""
    return next((dict(hook) for hook in config.get('custom_hooks') or [] if hook['type'] == 'KNNHook'), None)


def find_pipeline(config: Config) -> list[dict]:
    """Return the training pipeline of a config, from whichever of the nested datasets has it."""
    dataset = config.train_dataloader.dataset
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    return list(dataset.get('pipeline', []))


def view_size(steps: Sequence) -> int:
    """Return the size of the first random crop in a pipeline, 224 if there is none."""
    found = next(_find_crops(steps), 224)
    return found if isinstance(found, int) else max(found)


def _find_crops(steps: Sequence) -> Iterator[int | Sequence[int]]:
    for step in steps:
        if not isinstance(step, dict):
            yield from _find_crops(step)
        elif step['type'].endswith('ResizedCrop'):
            yield step['scale']
        else:
            yield from _find_crops(step.get('transforms', ()))
