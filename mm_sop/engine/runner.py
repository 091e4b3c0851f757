"""MMEngine's Runner, completed so that a config trains the same whatever script starts it."""

import copy
import math
from functools import partial
from pathlib import Path

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel, convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.checkpoint import checkpoint

from mm_sop import compat
from mm_sop.engine.augmentation import place_augmentation
from mm_sop.engine.checkpoints import check_resumable, find_latest
from mm_sop.engine.cpu import prepare_cpu
from mm_sop.engine.distributed import connect_processes
from mm_sop.engine.processes import guard_run
from mm_sop.engine.restarts import continue_restarted
from mm_sop.engine.sharding import ShardedCheckpointHook, shard_parameters
from mm_sop.utils.modules import batch_size_of, match_modules, unwrap_model


@RUNNERS.register_module()
class PretrainRunner(Runner):
    """MMEngine's Runner with everything that this project's configs rely on.

    ``runner_type = 'PretrainRunner'`` in a config makes ``mim train``, ``RUNNERS.build`` and the training scripts of
    MMPretrain and MMDetection use it, as this project's own script does. In addition to MMEngine's Runner,

    - ``auto_scale_lr`` counts accumulated gradients as part of the batch (:meth:`build_optim_wrapper`),
    - schedules given in epochs end with the run (:meth:`build_param_scheduler`),
    - target networks move once per optimizer step (:func:`pace_averaged_models`),
    - ``compile_blocks`` compiles parts of the model (:func:`compile_blocks`), and the names in
      ``activation_checkpointing`` may have wildcards (:func:`recompute_activations`),
    - ``augment_on`` says where views are augmented (:func:`place_augmentation`),
    - ``shard_parameters`` shards large models over the processes (:func:`shard_parameters`),
    - several processes can train without CUDA (:meth:`wrap_model`, :func:`connect_processes`),
    - there is always a seed, and a checkpoint is verified before it is resumed from (:meth:`from_cfg`),
    - one run at a time writes into a work directory, and the processes end with their launcher (:func:`guard_run`).
    """

    _shards: ShardedCheckpointHook | None = None

    @classmethod
    def from_cfg(cls, cfg: dict | Config) -> 'PretrainRunner':
        """Build a runner from a config, which is not changed.

        Raises:
            CheckpointError: The checkpoint to resume from is damaged or missing; the message names another one.
            LaunchError: The processes cannot be connected.
        """
        cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(copy.deepcopy(cfg))
        # MMEngine's default asks for NCCL.
        cfg.setdefault('env_cfg', {})
        set_default_seed(cfg)
        drop_worker_options(cfg)
        place_augmentation(cfg)
        continue_restarted(cfg)
        resolve_resume(cfg)
        return super().from_cfg(cfg)

    def setup_env(self, env_cfg: dict) -> None:
        """Prepare CPU and checkpoint reading, and connect the processes."""
        compat.apply()
        prepare_cpu()
        connect_processes(self.launcher, env_cfg.get('dist_cfg'))
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes, also without CUDA, where SyncBN becomes BatchNorm.

        A model that is to be sharded stays as it is until :meth:`train`.
        """
        if self._sharding:
            if model_wrapper_cfg:
                raise ValueError('model_wrapper_cfg and shard_parameters exclude each other: leave one out')
            if (
                self.cfg.optim_wrapper.get('dtype') == 'float16'
                or self.cfg.optim_wrapper.get('type') == 'AmpOptimWrapper'
            ):
                raise ValueError(
                    "shard_parameters has no loss scaling: set optim_wrapper.dtype='bfloat16' or 'float32'"
                )
            if self.cfg.get('sync_bn'):
                model = convert_sync_batchnorm(model, self.cfg.sync_bn)
            model = model.to(get_device())
            return model if torch.cuda.is_available() else separate_norms(model)
        if torch.cuda.is_available():
            return super().wrap_model(model_wrapper_cfg, model)
        if self.distributed:
            defaults = dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
            # Device ids are for CUDA only.
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {}), 'device_ids': None}
        return separate_norms(super().wrap_model(model_wrapper_cfg, model))

    @property
    def _sharding(self) -> dict | bool:
        """Options of :func:`shard_parameters`, or False where there is nothing to shard."""
        return (self.distributed and self.cfg.get('shard_parameters')) or False

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimizer wrapper, with the learning rate scaled linearly to the global batch.

        ``auto_scale_lr`` enables the scaling. MMEngine's own scaling leaves gradient accumulation out. The config is
        scaled rather than the parameter groups, so that constructors derive each group's rate from the scaled one.
        """
        scaling = self.auto_scale_lr
        if scaling and scaling.get('enable') and isinstance(optim_wrapper, dict):
            optim_wrapper = copy.deepcopy(optim_wrapper)
            accumulation = optim_wrapper.get('accumulative_counts', 1)
            batch_size = batch_size_of(self.train_dataloader)
            global_batch = batch_size * self.world_size * accumulation
            optimizer = optim_wrapper['optimizer']
            base, base_batch = optimizer['lr'], scaling['base_batch_size']
            optimizer['lr'] = base * global_batch / base_batch
            self.logger.info(
                f'Learning rate {optimizer["lr"]:.4g} = {base:.4g} x {global_batch} / {base_batch}; global batch '
                f'{global_batch} = {batch_size} images x {self.world_size} processes x {accumulation} accumulated'
            )
        return super().build_optim_wrapper(optim_wrapper)

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Do nothing: :meth:`build_optim_wrapper` has scaled the learning rate."""

    def build_param_scheduler(self, scheduler: dict | list) -> list | dict:
        """Build the schedulers; those that are given in epochs and change in every iteration end with the run.

        A run that is shorter than its warm-up, as in a quick trial, consists of the warm-up. Schedules that would begin
        after the end are left out.
        """
        # Resuming passes schedulers that are built already.
        if isinstance(scheduler, list) and all(isinstance(each, dict) for each in scheduler):
            fitted = []
            for schedule in map(dict, scheduler):
                if schedule.get('convert_to_iter_based') and 'T_max' not in schedule:
                    del schedule['convert_to_iter_based']
                    per_epoch = len(self.train_dataloader)
                    begin, end = schedule.get('begin', 0) * per_epoch, schedule.get('end', math.inf) * per_epoch
                    schedule.update(by_epoch=False, begin=int(begin), end=int(min(end, self.max_iters)))
                if schedule.get('begin', 0) < self.max_iters:
                    fitted.append(schedule)
                else:
                    self.logger.warning(
                        f'{schedule["type"]} is left out: it would begin at iteration {schedule["begin"]} of '
                        f'{self.max_iters}'
                    )
            scheduler = fitted
        return super().build_param_scheduler(scheduler)

    def train(self) -> nn.Module:
        """Train; see :meth:`mmengine.runner.Runner.train`.

        Raises:
            LaunchError: Another run writes into the work directory.
            ValueError: No module has a name in ``compile_blocks``, ``activation_checkpointing`` or
                ``shard_parameters``, or the model cannot be sharded.
        """
        with guard_run(self.work_dir, self.launcher):
            model = unwrap_model(self.model)
            if isinstance(self.optim_wrapper, dict):
                pace_averaged_models(model, self.optim_wrapper.get('accumulative_counts', 1))
            # MMEngine's checkpoints are reentrant: DDP and sharding refuse blocks that see crops of several sizes.
            if recomputed := self.cfg.pop('activation_checkpointing', None):
                self.logger.info(f'Recomputing activations of {recompute_activations(model, recomputed)} blocks.')
            if self.cfg.get('compile_blocks'):
                compiled = compile_blocks(model, self.cfg.compile_blocks)
                self.logger.info(f'Compiling {compiled} blocks; the first iterations are slow.')
            if self._sharding:
                # The optimizer refers to shards, and MMEngine builds it before it initializes the weights.
                self._init_model_weights()
                shard_parameters(self.model, self._sharding)
                self._shards = ShardedCheckpointHook()
                self.register_hook(self._shards)
                self.logger.info(f'Parameters are sharded over {self.world_size} processes.')
            return super().train()

    def _init_model_weights(self) -> None:
        if self._shards is None:
            super()._init_model_weights()

    def save_checkpoint(self, *args, **kwargs) -> None:
        """Save a checkpoint, with whole tensors of a sharded model; see :meth:`mmengine.runner.Runner`."""
        if self._shards is not None:
            self._shards.gather(self)
        super().save_checkpoint(*args, **kwargs)


def set_default_seed(cfg: Config) -> None:
    """Set the seed to 0 if there is none, and give it to a :class:`ResumableSampler`.

    MMEngine passes no seed to samplers if those of the processes differ (``diff_rank_seed``).
    """
    randomness = dict(cfg.get('randomness') or {})
    if randomness.get('seed') is None:
        randomness['seed'] = 0
    cfg.randomness = randomness
    sampler = (cfg.get('train_dataloader') or {}).get('sampler') or {}
    if str(sampler.get('type')).split('.')[-1] == 'ResumableSampler':
        sampler.setdefault('seed', randomness['seed'])


def drop_worker_options(cfg: Config) -> None:
    """Remove the options that PyTorch refuses for a DataLoader without worker processes."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader and not loader.get('num_workers'):
            for option in ('persistent_workers', 'prefetch_factor'):
                loader.pop(option, None)


def resolve_resume(cfg: Config) -> None:
    """Find and verify the checkpoint to resume from, if ``cfg.resume`` asks for it.

    ``load_from`` becomes the checkpoint, and ``resume`` False where there is none.

    Raises:
        CheckpointError: It is damaged or missing; the message names another one.
    """
    if not cfg.get('resume'):
        return
    path = Path(cfg.load_from) if cfg.get('load_from') else find_latest(cfg.work_dir)
    if path is None:
        cfg.resume = False
        print_log(f'No checkpoint in {cfg.work_dir}: training starts from the beginning.', 'current')
        return
    check_resumable(path)
    cfg.load_from = str(path)
    initialization = cfg.model.get('init_cfg')
    if isinstance(initialization, dict) and initialization.get('type') == 'PretrainedBackbone':
        # The checkpoint overwrites its weights, and its file may be gone.
        cfg.model.init_cfg = None


def separate_norms(model: nn.Module) -> nn.Module:
    """Replace SyncBN, which needs CUDA, by BatchNorm; the parameters stay the same objects."""
    norms = sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if not norms:
        return model
    print_log(f'{norms} SyncBN became BatchNorm, with statistics of each process: there is no CUDA device', 'current')
    return revert_sync_batchnorm(model)


def pace_averaged_models(model: nn.Module, accumulation: int) -> None:
    """Move target networks that are updated within ``loss()``, as MMPretrain's are, once per optimizer step.

    Otherwise the gradients that are accumulated into one step would come from several target networks.
    """
    for module in model.modules():
        if isinstance(module, BaseAveragedModel) and module.interval == 1:
            module.interval = accumulation


def compile_blocks(model: nn.Module, options: dict | bool) -> int:
    """Compile the blocks of student and teacher in place, for static shapes, and return their number.

    A block is compiled once for each crop size, which takes a fraction of the time of compiling a whole model. Names in
    the state dict do not change.

    ``options`` are the ``pattern`` of module names, ``'backbone.layers.*'`` by default, and arguments of
    :func:`torch.compile`, e.g. ``dict(mode='max-autotune')``; True for the defaults.
    """
    options = dict(options) if isinstance(options, dict) else {}
    pattern = options.pop('pattern', 'backbone.layers.*')
    options.setdefault('dynamic', False)
    blocks = match_modules(model, [pattern, f'teacher.{pattern}'], 'compile_blocks.pattern')
    for block in blocks.values():
        for module in block.modules():
            if isinstance(module, DropPath):
                # MMPretrain's rates are NumPy numbers: compiled programs would break off at every comparison.
                module.drop_prob = float(module.drop_prob)
        block.compile(**options)
    return len(blocks)


def recompute_activations(model: nn.Module, patterns: str | list[str]) -> int:
    """Recompute the activations within modules in the backward pass instead of keeping them; returns their number.

    Args:
        model: The network, changed in place; names in the state dict stay.
        patterns: Names of modules, in which ``*`` stands for anything but a dot.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = {}
    for pattern in patterns:
        found.update(match_modules(model, [pattern], 'activation_checkpointing'))
    for module in found.values():
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return len(found)
