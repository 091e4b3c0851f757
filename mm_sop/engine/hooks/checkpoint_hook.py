"""Checkpoints from which a run continues as if it had never stopped."""

import shutil
import signal
import sys
from collections import defaultdict
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, all_reduce, barrier, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.datasets.randomness import collect_random_state, restore_random_state, seed_everything_from
from mm_sop.engine.checkpoints import check_fits, check_start, list_checkpoints
from mm_sop.engine.hooks.base import PretrainHook
from mm_sop.engine.optimizers.pretrain_optim_wrapper import PretrainOptimWrapper
from mm_sop.engine.processes import EXIT_CODES, StopSignals
from mm_sop.engine.resumption import adapt_checkpoint, describe_settings, samples_seen
from mm_sop.utils.files import write_atomically
from mm_sop.utils.modules import unwrap_model
from mm_sop.utils.run_starts import record_start

MIN_HISTORY = 1000
"""Logged values of each kind that a checkpoint keeps at least, 16 kB."""


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """Local files, written by :func:`write_atomically`; ``backend_args=dict(backend='atomic')``."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


@HOOKS.register_module()
class PretrainCheckpointHook(PretrainHook, CheckpointHook):
    """Saves everything that a bit-identical continuation needs, safely, and also when the run is asked to stop.

    Besides model, optimizer, schedulers and message hub a checkpoint contains the random states of all processes. Of
    every logged value it contains the last thousand, or as many as are averaged. The checkpoint is written atomically,
    then ``last_checkpoint``, and only then are older checkpoints removed. With gradient accumulation, saving waits for
    the next optimizer step, so that no gradient is lost.

    On SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 all processes agree, save a checkpoint and exit with code 143, 130 or, for
    SIGUSR1, 0. A second signal, at least two seconds later, ends the process at once.

    Args:
        interval (int): Iterations between checkpoints; -1 for none. Defaults to -1.
        epochs (int): Epochs between checkpoints; -1 for none. Defaults to 1.
        max_keep_ckpts (int): Recent checkpoints to keep; -1 for all. Defaults to 2.
        keep_every (int): Epochs between checkpoints that are never removed, and that are saved even if none is due;
            -1 for none. Defaults to -1.
        signal_interval (int): Iterations between exchanges of signals if there are several processes. Defaults to 10.
        **kwargs: Further arguments of MMEngine's CheckpointHook, such as ``save_best``, ``save_last``, ``out_dir``.
    """

    def __init__(
        self,
        interval: int = -1,
        epochs: int = 1,
        max_keep_ckpts: int = 2,
        keep_every: int = -1,
        signal_interval: int = 10,
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        if signal_interval < 1:
            raise ValueError(f'signal_interval must be at least 1, got {signal_interval}')
        backend_args = backend_args or dict(backend='atomic')
        super().__init__(interval, by_epoch=False, max_keep_ckpts=max_keep_ckpts, backend_args=backend_args, **kwargs)
        self.epochs = epochs
        self.keep_every = keep_every
        self.signal_interval = signal_interval
        self.signals = StopSignals()
        self._resumed: dict | None = None
        # Whether iterations of this run and of earlier checkpoints in its folder are numbered differently.
        self._is_renumbered = True
        self._samples = self._first_iter = 0
        self._is_due = self._is_permanent = False
        self._permanent: set[int] = set()
        self._stop_signal = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check a checkpoint that the run starts or resumes from, and take over its state."""
        # Public attributes tell neither: `runner.cfg` is empty if the runner was built from arguments.
        if not runner._resume:
            source = str(runner._load_from or 'the checkpoint')
            # MMEngine reads the weights from this key only.
            checkpoint['state_dict'] = check_start(unwrap_model(runner.model), checkpoint, source)
            return
        check_fits(unwrap_model(runner.model), checkpoint['state_dict'])
        self._resumed = checkpoint.get('pretrain')
        self._is_renumbered = False
        self._samples = samples_seen(checkpoint)
        if isinstance(runner.optim_wrapper, OptimWrapper):
            saved_at = checkpoint['meta']['iter']
            adapt_checkpoint(runner, checkpoint)
            self._is_renumbered = checkpoint['meta']['iter'] != saved_at

    def before_train(self, runner: Runner) -> None:
        """Prepare folders and start listening to signals."""
        super().before_train(runner)
        self._is_due = self._is_permanent = False
        self._stop_signal = 0
        self.signals.install()
        self._first_iter = runner.iter
        if self._is_renumbered:
            existing = [int(path.stem.removeprefix('iter_')) for path in list_checkpoints(self.out_dir)]
            runner.message_hub.update_info('earlier_ckpt_ids', existing)
            if existing and runner.iter == 0:
                runner.logger.warning(
                    f'{self.out_dir} holds checkpoints of an earlier run, up to iteration {max(existing)}. This run '
                    'starts from the beginning (--resume continues that one); a checkpoint whose number is used again '
                    'becomes iter_N_earlier.pth'
                )
        if is_main_process():
            record_start(Path(runner.work_dir, runner.timestamp), runner.iter, len(runner.train_dataloader))

    def release(self, runner: Runner) -> None:
        self.signals.uninstall()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Restore the random state, once and as late as possible."""
        if self._resumed is None:
            return
        states = self._resumed['random_states']
        if len(states) == get_world_size():
            restore_random_state(states[get_rank()])
        else:
            runner.logger.warning(
                f'The run had {len(states)} processes and has {get_world_size()} now: their random states cannot be '
                'restored and are drawn again from seed, iteration and rank.'
            )
            seed_everything_from(runner.seed, runner.iter, get_rank())
            if torch.cuda.is_available():
                torch.cuda.manual_seed(torch.initial_seed())
        self._resumed = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Save if it is time to, or if the run was asked to stop."""
        finished, per_epoch = runner.iter + 1, len(runner.train_dataloader)
        if get_world_size() == 1:
            self._stop_signal = self.signals.received
        elif finished % self.signal_interval == 0:
            # A signal that some processes have received is for all of them.
            number = torch.tensor(self.signals.received)
            all_reduce(number, 'max')
            self._stop_signal = self._stop_signal or int(number)
        self._is_permanent |= _is_multiple(finished, self.keep_every * per_epoch)
        self._is_due |= _is_multiple(finished, self.interval) or _is_multiple(finished, self.epochs * per_epoch)
        self._is_due |= self._is_permanent or (self.save_last and finished == runner.max_iters)
        # At the end of an epoch, the hooks of `after_train_epoch` run first: the checkpoint contains their changes.
        if finished % per_epoch and finished != runner.max_iters:
            self._save_if_possible(runner, finished)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save if a checkpoint became due with the last iteration."""
        self._save_if_possible(runner, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add position, settings and random states."""
        settings, finished = describe_settings(runner), checkpoint['meta']['iter']
        global_batch = settings['batch_size'] * settings['num_processes']
        epoch, within = divmod(finished, settings['iters_per_epoch'])
        samples = self._samples + (finished - self._first_iter) * global_batch
        position = dict(epoch=epoch, samples_of_epoch=within * global_batch, samples=samples)
        checkpoint['meta'].update(settings=settings, position=position)
        checkpoint['pretrain'] = dict(iters_per_epoch=settings['iters_per_epoch'], random_states=self._random_states)

    def _save_if_possible(self, runner: Runner, finished: int) -> None:
        if not (self._is_due or self._stop_signal) or not runner.optim_wrapper.should_update():
            return
        runner.logger.info(f'Saving checkpoint at {finished} iterations')
        meta = dict(epoch=finished // len(runner.train_dataloader), iter=finished)
        self._save_checkpoint_with_step(runner, finished, meta)
        if self._stop_signal and finished < runner.max_iters:
            number = signal.Signals(self._stop_signal)
            runner.logger.info(f'Stopped by {number.name}. Go on with the same command and --resume {self.last_ckpt}')
            runner.visualizer.close()
            # A launcher ends the other processes with the first one, and the main process may still be writing.
            barrier()
            sys.exit(EXIT_CODES[number])

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, update ``last_checkpoint``, and only then remove outdated checkpoints.

        MMEngine calls it as well, after it has saved a new best checkpoint.
        """
        if isinstance(runner.optim_wrapper, PretrainOptimWrapper):
            runner.optim_wrapper.check_finite()
        runner.call_hook('before_checkpoint')
        shorten_histories(runner)
        self._random_states = all_gather_object(collect_random_state())
        self._keep_namesake(runner, step)
        if self._is_permanent:
            self._permanent.add(step)
        recent = [old for old in runner.message_hub.get_info('keep_ckpt_ids', []) if old != step]
        recent += [] if step in self._permanent else [step]
        num_kept = self.max_keep_ckpts if self.max_keep_ckpts > 0 else len(recent)
        runner.message_hub.update_info('keep_ckpt_ids', recent[-num_kept:])
        self.last_ckpt = str(Path(self.out_dir, self.filename_tmpl.format(step)))
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            Path(self.last_ckpt).name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=False,
            backend_args=self.backend_args,
        )
        if is_main_process():
            write_atomically(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
            for old in recent[:-num_kept]:
                Path(self.out_dir, self.filename_tmpl.format(old)).unlink(missing_ok=True)
        self._is_due = self._is_permanent = False

    def _keep_namesake(self, runner: Runner, step: int) -> None:
        """Copy a permanent checkpoint whose number has another meaning since the run was resumed to another name."""
        earlier = runner.message_hub.get_info('earlier_ckpt_ids', [])
        runner.message_hub.update_info('earlier_ckpt_ids', [number for number in earlier if number != step])
        path = Path(self.out_dir, self.filename_tmpl.format(step))
        outlives = step in earlier and step not in runner.message_hub.get_info('keep_ckpt_ids', [])
        if outlives and is_main_process() and path.is_file():
            shutil.copyfile(path, path.with_stem(f'{path.stem}_earlier'))


def _is_multiple(number: int, interval: int) -> bool:
    return interval > 0 and number % interval == 0


def shorten_histories(runner: Runner) -> None:
    """Drop logged values that no average needs any more; otherwise checkpoints would grow with every iteration.

    Hooks that average more than :data:`MIN_HISTORY` values declare it as ``history_window``. Custom rules of the log
    processor keep as many as they average; those over the whole run keep all.
    """
    windows: dict[str, float] = defaultdict(int)
    for rule in runner.log_processor.custom_cfg:
        name, window = rule['data_src'], rule.get('window_size')
        if window == 'epoch':
            window = len(runner.train_dataloader)
        elif rule.get('method_name') == 'current':
            window = 1
        windows[name] = max(windows[name], window if isinstance(window, int) else float('inf'))
    declared = [hook.history_window for hook in runner.hooks if isinstance(hook, PretrainHook)]
    shortest = max(MIN_HISTORY, runner.log_processor.window_size, *declared)
    scalars = runner.message_hub.log_scalars
    for key, history in scalars.items():
        values, counts = history.data
        # The log processor's name of ``train/loss`` is ``loss``.
        length = max(shortest, windows[key], windows[key.partition('/')[2]])
        if len(values) > length:
            scalars[key] = HistoryBuffer(values[-length:], counts[-length:])
