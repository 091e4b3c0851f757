"""MMEngine's Runner, completed so that a config trains the same whatever script starts it."""

import copy
import math
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from mm_sop import compat
from mm_sop.engine.checkpoints import check_resumable, find_latest
from mm_sop.engine.cpu import prepare_cpu
from mm_sop.engine.distributed import connect_processes
from mm_sop.engine.processes import guard_run
from mm_sop.engine.restarts import continue_restarted
from mm_sop.utils.modules import batch_size_of, unwrap_model


@RUNNERS.register_module()
class PretrainRunner(Runner):
    """MMEngine's Runner with everything that this project's configs rely on.

    ``runner_type = 'PretrainRunner'`` in a config makes ``mim train``, ``RUNNERS.build`` and the training scripts of
    MMPretrain and MMDetection use it, as this project's own script does. In addition to MMEngine's Runner,

    - ``auto_scale_lr`` counts accumulated gradients as part of the batch (:meth:`build_optim_wrapper`),
    - schedules given in epochs end with the run (:meth:`build_param_scheduler`),
    - target networks move once per optimizer step (:func:`pace_averaged_models`),
    - ``compile_blocks`` compiles parts of the model (:func:`compile_blocks`), and the names in
      ``activation_checkpointing`` may have wildcards (:func:`find_checkpointed`),
    - several processes can train without CUDA (:meth:`wrap_model`, :func:`connect_processes`),
    - there is always a seed, and a checkpoint is verified before it is resumed from (:meth:`from_cfg`),
    - one run at a time writes into a work directory, and the processes end with their launcher (:func:`guard_run`).
    """

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
        """Wrap the model for several processes, also without CUDA, where SyncBN becomes BatchNorm."""
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
            ValueError: No module has a name in ``compile_blocks`` or ``activation_checkpointing``.
        """
        with guard_run(self.work_dir, self.launcher):
            model = unwrap_model(self.model)
            if isinstance(self.optim_wrapper, dict):
                pace_averaged_models(model, self.optim_wrapper.get('accumulative_counts', 1))
            if self.cfg.get('activation_checkpointing'):
                self.cfg.activation_checkpointing = find_checkpointed(model, self.cfg.activation_checkpointing)
            if self.cfg.get('compile_blocks'):
                compiled = compile_blocks(model, self.cfg.compile_blocks)
                self.logger.info(f'Compiling {compiled} blocks; the first iterations are slow.')
            return super().train()


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
        block.compile(**options)
    return len(blocks)


def find_checkpointed(model: nn.Module, patterns: str | list[str]) -> list[str]:
    """Names of the modules whose activations are recomputed in the backward pass, for MMEngine."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return [name for pattern in patterns for name in match_modules(model, [pattern], 'activation_checkpointing')]


def match_modules(model: nn.Module, patterns: list[str], key: str) -> dict[str, nn.Module]:
    """Find submodules by their dotted names, in which ``*`` stands for anything but a dot.

    Raises:
        ValueError: There is none; the message begins with the key of the config.
    """
    expression = '|'.join('[^.]+'.join(map(re.escape, pattern.split('*'))) for pattern in patterns)
    found = {name: module for name, module in model.named_modules() if re.fullmatch(expression, name)}
    if not found:
        raise ValueError(f'{key}: no module of the model is called {patterns[0]!r}')
    return found
