"""Trains a model from a config."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mm_sop import compat
from mm_sop.datasets.shards import holds_shards
from mm_sop.engine.preflight import check_devices, check_run
from mm_sop.engine.processes import guard_run
from mm_sop.engine.runner import PretrainRunner
from mm_sop.utils.config import is_self_supervised, leaf_datasets, load_config, merge_options, training_dataset
from mm_sop.utils.failures import LaunchError


def launch(
    config: str | Path | Config,
    work_dir: str | None = None,
    resume: bool | str = False,
    amp: bool = False,
    data: str | None = None,
    launcher: str = 'none',
    seed: int | None = None,
    pretrained: str | None = None,
    cfg_options: dict | None = None,
) -> Runner:
    """Train a model.

    Works with any config of MMEngine's Runner: pretraining, classification or detection. A config without
    ``runner_type`` is trained by :class:`PretrainRunner`.

    Args:
        config: Config, or path of one.
        work_dir: Defaults to ``work_dirs/<name of the config>``.
        resume: A checkpoint, or True for the latest one in the work directory, if there is one.
        amp: Whether to train with bfloat16 autocast.
        data: Folder of the training images, see :func:`set_data_root`.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        seed: Defaults to that of the config, or 0.
        pretrained: Checkpoint whose backbone the model starts from, see :func:`set_pretrained`.
        cfg_options: Changes to the config, by dotted key.

    Raises:
        LaunchError: Config, data or device are not as they should be, or another run writes into the work directory.
        CheckpointError: The checkpoint to resume from is damaged.
        WeightsError: The pretrained checkpoint does not fit the backbone.
        AnnotationError: The annotations of a detection dataset cannot be trained on.
    """
    compat.apply()
    check_devices(launcher)
    cfg = config if isinstance(config, Config) else load_config(config)
    merge_options(cfg, cfg_options or {})
    if pretrained is not None:
        set_pretrained(cfg, pretrained)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(cfg.filename or "unnamed.py").stem}'
    if seed is not None:
        set_seed(cfg, seed)
    if data is not None:
        set_data_root(cfg, data)
    if amp:
        enable_bfloat16(cfg)
    if resume:
        cfg.resume, cfg.load_from = True, None if resume is True else str(resume)
    check_run(cfg)
    # Before the runner writes its logs and its config into the folder.
    with guard_run(cfg.work_dir, launcher):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else PretrainRunner.from_cfg(cfg)
        runner.train()
    return runner


def set_seed(cfg: Config, seed: int) -> None:
    """Set the random seed; a negative one raises :class:`LaunchError`."""
    if seed < 0:
        raise LaunchError(f'--seed {seed}: expected 0 or more')
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)


def set_pretrained(cfg: Config, checkpoint: str) -> None:
    """Start a detector, segmentor or classifier from the backbone of a checkpoint, or from none if it is ``'none'``.

    ``model.init_cfg`` becomes a :class:`PretrainedBackbone` with the options that it already has.
    """
    options = dict(cfg.model.get('init_cfg') or {}, type='PretrainedBackbone', checkpoint=checkpoint)
    cfg.model.init_cfg = None if checkpoint == 'none' else options


def set_data_root(cfg: Config, folder: str) -> None:
    """Train on the images of another folder.

    Self-supervised methods need no labels: whatever their dataset was, it becomes ``UnlabeledImages``, or
    ``ShardedImages`` for a folder of shards, with the same pipeline, so that any folder will do. In other configs
    ``data_root`` changes, also for validation and test if it was the same there; the folder must be laid out as the
    dataset expects.

    Raises:
        LaunchError: The config has no training data.
    """
    dataset = training_dataset(cfg)
    if dataset is None:
        raise LaunchError('--data: the config has no train_dataloader')
    if is_self_supervised(cfg):
        kind = 'ShardedImages' if holds_shards(folder) else 'UnlabeledImages'
        found = str(dataset.get('type')).removeprefix('mmpretrain.')
        if found not in ('ShardedImages', 'UnlabeledImages'):
            pipeline = dataset.get('pipeline', [])
            dataset.clear()
            dataset['pipeline'] = pipeline
        if found != kind:
            dataset['type'] = f'mmpretrain.{kind}'
        dataset['data_root'] = folder
        return
    leaves = leaf_datasets(cfg.train_dataloader.dataset)
    old = leaves[0].get('data_root')
    for split in ('val', 'test'):
        others = leaf_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset'))
        leaves += [leaf for leaf in others if leaf.get('data_root') == old]
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if old and evaluator.get('ann_file', '').startswith(old):
                evaluator['ann_file'] = str(Path(folder, evaluator['ann_file'].removeprefix(old).lstrip('/')))
    for leaf in leaves:
        leaf['data_root'] = folder


def enable_bfloat16(cfg: Config) -> None:
    """Switch the optimizer wrapper of any config to bfloat16, on CPU as well as on CUDA."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type', 'OptimWrapper') in ('OptimWrapper', 'AmpOptimWrapper'):
        wrapper.pop('loss_scale', None)
        clip = wrapper.pop('clip_grad', None)
        if clip:
            wrapper.clip = dict(type='global_norm', max_norm=clip['max_norm'])
        wrapper.type = 'mmpretrain.PretrainOptimWrapper'
    wrapper.dtype = 'bfloat16'
