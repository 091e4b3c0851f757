"""Checks a config, its data and the machine before training begins."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config

from mm_sop.datasets.image_files import EXTENSIONS, iterate_images
from mm_sop.datasets.labeled.coco_checks import check_coco, check_num_classes, class_names
from mm_sop.engine.distributed import RANK_VARIABLES
from mm_sop.utils.channel_order import ChannelOrderError, loading_order, network_order
from mm_sop.utils.config import leaf_datasets
from mm_sop.utils.failures import LaunchError

# Packages of the experiment trackers that MMEngine supports.
_TRACKERS = dict(
    WandbVisBackend='wandb',
    TensorboardVisBackend='tensorboard',
    MLflowVisBackend='mlflow',
    ClearMLVisBackend='clearml',
    NeptuneVisBackend='neptune',
    DVCLiveVisBackend='dvclive',
    AimVisBackend='aim',
)


def check_run(cfg: Config) -> None:
    """Refuse a config that cannot be trained, before anything is built.

    Args:
        cfg: The config, complete.

    Raises:
        LaunchError: A package, the training images or the labeled images of k-NN are missing, or options of the config
            contradict each other or the machine.
        AnnotationError: COCO annotations have a fault, see :func:`check_coco`.
    """
    check_operators(cfg)
    check_trackers(cfg)
    check_data(cfg)
    check_precision(cfg)


def check_data(cfg: Config) -> None:
    """Refuse to begin without images, or with annotations that cannot be trained on.

    Raises:
        LaunchError: A folder does not exist, contains no image where any image would do, or images would be loaded in
            the wrong channel order.
        AnnotationError: COCO annotations have a fault, see :func:`check_coco`.
    """
    check_channels(cfg)
    check_training_images(cfg)
    check_annotations(cfg, 'train', 'val')
    check_knn_data(cfg)


def check_channels(cfg: Config) -> None:
    """Refuse loading and preprocessing that contradict each other about the order of the color channels.

    Raises:
        LaunchError: They do, or images of training and evaluation are loaded in different orders.
    """
    try:
        network_order(cfg)
        loading_order([cfg.get(name) for name in ('train_dataloader', 'val_dataloader', 'test_dataloader')])
        loading_order([cfg.get('train_dataloader'), cfg.get('custom_hooks')])
    except ChannelOrderError as error:
        raise LaunchError(str(error)) from error


def check_training_images(cfg: Config) -> None:
    """Refuse a folder of training images that does not exist, or unlabeled images without a single file.

    Raises:
        LaunchError: The message names the folders.
    """
    leaves = leaf_datasets(cfg.get('train_dataloader', {}).get('dataset'))
    given = [leaf.get('data_root') or [] for leaf in leaves]
    folders = [[roots] if isinstance(roots, str) else roots for roots in given]
    missing = [root for roots in folders for root in roots if not Path(root).exists()]
    if missing:
        raise LaunchError(
            f'no training data: {", ".join(missing)} does not exist. Give a folder of images with --data DIR, or '
            'make a dataset with tools/prepare_data.py'
        )
    for leaf, roots in zip(leaves, folders, strict=True):
        if leaf['type'] not in ('UnlabeledImages', 'mmpretrain.UnlabeledImages'):
            continue
        for root in roots:
            try:
                next(iterate_images(root, leaf.get('extensions', EXTENSIONS)))
            except (OSError, ValueError) as error:
                raise LaunchError(f'no training data: {error}') from error


def check_knn_data(cfg: Config) -> None:
    """Refuse to begin without the labeled images of a k-NN hook, which ``--data`` does not replace.

    Raises:
        LaunchError: Neither a folder nor a file list of that name exists.
    """
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
    """Refuse COCO annotations with a fault, or whose classes are not those of the model.

    Args:
        cfg: The config.
        *splits: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        AnnotationError: See :func:`check_coco` and :func:`check_num_classes`.
    """
    for split in splits:
        for leaf in leaf_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            if leaf['type'] in ('CocoDataset', 'mmdet.CocoDataset'):
                check_coco(leaf)
                check_num_classes(cfg.model, class_names(leaf))


def check_devices(launcher: str) -> None:
    """Refuse more processes on a machine than it has GPUs, if it has any: with NCCL, two cannot share one.

    Args:
        launcher: As for :func:`launch`.

    Raises:
        LaunchError: There are too few GPUs.
    """
    available = torch.cuda.device_count()
    rank = int(os.environ.get(RANK_VARIABLES[launcher][-1], '0')) if launcher != 'none' else 0
    if 0 < available <= rank:
        raise LaunchError(
            f'process {rank} (from 0) of this machine has no GPU of its own, as only {available} can be seen: start '
            "fewer processes, or use the CPU with CUDA_VISIBLE_DEVICES=''"
        )


def check_operators(cfg: Config) -> None:
    """Refuse a config that uses MMDetection if MMCV has no compiled operators.

    Raises:
        LaunchError: The operators are missing.
    """
    uses_detection = cfg.get('default_scope') == 'mmdet' or "'mmdet." in str(cfg.to_dict())
    if uses_detection and find_spec('mmcv._ext') is None:
        raise LaunchError(
            f'{Path(cfg.filename or "config").name} needs MMCV with compiled operators: `bash tools/setup.sh test` '
            'builds it once'
        )


def check_trackers(cfg: Config) -> None:
    """Refuse a config with an experiment tracker that is not installed.

    Raises:
        LaunchError: The message contains the command that installs it.
    """
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or []
    names = [str(backend.get('type')).split('.')[-1] for backend in backends if isinstance(backend, dict)]
    for name in names:
        package = _TRACKERS.get(name)
        if package and find_spec(package) is None:
            install = "pip install -e '.[wandb]'" if package == 'wandb' else f'pip install {package}'
            raise LaunchError(
                f'{name} needs the package {package}, which is not installed: `{install}`, or leave it out of '
                'visualizer.vis_backends'
            )


def check_precision(cfg: Config) -> None:
    """Refuse half precision for detectors on the CPU.

    Raises:
        LaunchError: MMCV's operators would fail in the first iteration.
    """
    dtype = (cfg.get('optim_wrapper') or {}).get('dtype', 'float32')
    if dtype != 'float32' and cfg.get('default_scope') == 'mmdet' and not torch.cuda.is_available():
        raise LaunchError(
            f"{dtype} for a detector needs a CUDA device, as MMCV's NMS on the CPU knows float32 only: leave out --amp "
            'and optim_wrapper.dtype'
        )
