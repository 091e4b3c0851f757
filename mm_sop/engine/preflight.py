"""Checks a config, its data and the machine before training begins.

Every check raises :class:`LaunchError`, whose message says what to change, and faults of COCO annotations
:class:`AnnotationError`.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config

from mm_sop.datasets.image_files import EXTENSIONS, iterate_images
from mm_sop.datasets.labeled.coco_checks import check_coco, check_num_classes, class_names
from mm_sop.datasets.shards import find_shards
from mm_sop.engine.distributed import RANK_VARIABLES
from mm_sop.utils.channel_order import ChannelOrderError, loading_order, network_order
from mm_sop.utils.config import leaf_datasets
from mm_sop.utils.failures import LaunchError

# Experiment trackers that MMEngine supports. The backend of `MLflow` is `MLflowVisBackend`, its package `mlflow`.
_TRACKERS = ('Wandb', 'Tensorboard', 'MLflow', 'ClearML', 'Neptune', 'DVCLive', 'Aim')


def check_run(cfg: Config) -> None:
    """Refuse a complete config that cannot be trained, before anything is built."""
    check_operators(cfg)
    check_trackers(cfg)
    check_data(cfg)
    dtype = (cfg.get('optim_wrapper') or {}).get('dtype', 'float32')
    if dtype != 'float32' and cfg.get('default_scope') == 'mmdet' and not torch.cuda.is_available():
        raise LaunchError(
            f"{dtype} for a detector needs a CUDA device, as MMCV's NMS on the CPU knows float32 only: leave out --amp "
            'and optim_wrapper.dtype'
        )


def check_data(cfg: Config) -> None:
    """Refuse to begin without images, with images in the wrong channel order, or with faulty annotations."""
    check_channels(cfg)
    check_training_images(cfg)
    check_annotations(cfg, 'train', 'val')
    check_knn_data(cfg)


def check_channels(cfg: Config) -> None:
    """Refuse loading and preprocessing, or training and evaluation, that differ in the order of the color channels."""
    try:
        network_order(cfg)
        loading_order([cfg.get(name) for name in ('train_dataloader', 'val_dataloader', 'test_dataloader')])
        loading_order([cfg.get('train_dataloader'), cfg.get('custom_hooks')])
    except ChannelOrderError as error:
        raise LaunchError(str(error)) from error


def check_training_images(cfg: Config) -> None:
    """Refuse a folder of training images that does not exist, or unlabeled images without a single file."""
    leaves = leaf_datasets(cfg.get('train_dataloader', {}).get('dataset'))
    given = [(leaf, leaf.get('data_root') or []) for leaf in leaves]
    folders = [(leaf, root) for leaf, roots in given for root in ([roots] if isinstance(roots, str) else roots)]
    missing = [root for leaf, root in folders if not _is_sharded(leaf) and not Path(root).exists()]
    if missing:
        raise LaunchError(
            f'no training data: {", ".join(missing)} does not exist. Give a folder of images with --data DIR, or '
            'make a dataset with tools/prepare_data.py'
        )
    for leaf, root in folders:
        try:
            if leaf['type'] in ('UnlabeledImages', 'mmpretrain.UnlabeledImages'):
                next(iterate_images(root, leaf.get('extensions', EXTENSIONS)))
            elif _is_sharded(leaf):
                find_shards([root])
        except (OSError, ValueError) as error:
            raise LaunchError(f'no training data: {error}') from error


def _is_sharded(leaf: dict) -> bool:
    return leaf['type'] in ('ShardedImages', 'mmpretrain.ShardedImages')


def check_knn_data(cfg: Config) -> None:
    """Refuse to begin without the labeled images of a k-NN hook (a folder or file list), which ``--data`` keeps."""
    for index, hook in enumerate(cfg.get('custom_hooks') or ()):
        if not str(hook.get('type')).endswith('KNNHook'):
            continue
        roots = [dataset.get('data_root') for dataset in (hook['bank'], *hook['queries'].values())]
        missing = [root for root in roots if root and not (Path(root).exists() or Path(f'{root}.json').is_file())]
        if missing:
            raise LaunchError(
                f'no labeled images for k-NN: {", ".join(missing)} do not exist. Make those of the composites '
                'with `python tools/prepare_data.py composites --only classes`, name others in '
                f'custom_hooks.{index}, or leave out the hook'
            )


def check_annotations(cfg: Config, *splits: str) -> None:
    """Refuse COCO annotations of ``'train'``, ``'val'`` or ``'test'`` with a fault, or other classes than the model."""
    for split in splits:
        for leaf in leaf_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            if leaf['type'] in ('CocoDataset', 'mmdet.CocoDataset'):
                check_coco(leaf)
                check_num_classes(cfg.model, class_names(leaf))


def check_devices(launcher: str) -> None:
    """Refuse more processes on a machine than it has GPUs, if it has any: with NCCL, two cannot share one."""
    available = torch.cuda.device_count()
    rank = int(os.environ.get(RANK_VARIABLES[launcher][-1], '0')) if launcher != 'none' else 0
    if 0 < available <= rank:
        raise LaunchError(
            f'process {rank} (from 0) of this machine has no GPU of its own, as only {available} can be seen: start '
            "fewer processes, or use the CPU with CUDA_VISIBLE_DEVICES=''"
        )


def check_operators(cfg: Config) -> None:
    """Refuse a config that uses MMDetection if MMCV has no compiled operators."""
    uses_detection = cfg.get('default_scope') == 'mmdet' or "'mmdet." in str(cfg.to_dict())
    if uses_detection and find_spec('mmcv._ext') is None:
        raise LaunchError(
            f'{Path(cfg.filename or "config").name} needs MMCV with compiled operators: `bash tools/setup.sh test` '
            'builds it once'
        )


def check_trackers(cfg: Config) -> None:
    """Refuse a config with an experiment tracker that is not installed; the message has the command to install it."""
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or []
    names = [str(backend.get('type')).split('.')[-1] for backend in backends if isinstance(backend, dict)]
    for name in names:
        tracker = name.removesuffix('VisBackend')
        package = tracker.lower()
        if tracker in _TRACKERS and find_spec(package) is None:
            install = "pip install -e '.[wandb]'" if package == 'wandb' else f'pip install {package}'
            raise LaunchError(
                f'{name} needs the package {package}, which is not installed: `{install}`, or leave it out of '
                'visualizer.vis_backends'
            )
