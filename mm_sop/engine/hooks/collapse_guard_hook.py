"""Detects a collapsing representation, and explains the cause and possible remedies."""

import math
from collections.abc import Callable
from typing import NamedTuple

from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.engine.hooks.base import PretrainHook
from mm_sop.utils.failures import UserError


class CollapseError(UserError, RuntimeError):
    """The representation has collapsed and the run was configured to stop."""


class Symptom(NamedTuple):
    """A state of the diagnostics that indicates a collapse."""

    name: str
    needs: tuple[str, ...]  # diagnostics that it reads; it is not checked without them
    holds: Callable[..., bool]  # whether their values show the symptom
    cause: str
    remedy: str


SYMPTOMS = (
    Symptom(
        'similar keys',
        ('key_cosine',),
        lambda key_cosine: key_cosine > 0.95,
        'the teacher gives nearly the same embedding for every image',
        'lower the learning rate, put BatchNorm into the neck, or, for SOP, raise the weight of KoLeo (about 0.05)',
    ),
    Symptom(
        'similar supports',
        ('support_cosine',),
        lambda support_cosine: support_cosine > 0.98,
        'anchors and their supports are nearly identical, so that the prototypes distinguish nothing',
        'use more anchors with fewer supports (num_anchors 512 to 1024, num_supports 1 to 4), a bank not larger '
        'than the dataset, or a KoLeo weight of about 0.05',
    ),
    Symptom(
        'uniform targets',
        ('loss_cls', 'target_entropy', 'max_entropy'),
        lambda loss_cls, target_entropy, max_entropy: min(loss_cls, target_entropy) > 0.99 * max_entropy,
        'the loss stays at ln M and the targets are uniform: the teacher prefers no prototype',
        'lower the teacher temperature, check that the bank is filled with keys of this run, or warm up the learning '
        'rate for longer',
    ),
    Symptom(
        'few prototypes',
        ('mean_target_entropy', 'max_entropy'),
        lambda mean_target_entropy, max_entropy: mean_target_entropy < 0.35 * max_entropy,
        'the targets of the batch use few of the prototypes',
        'raise the teacher temperature, lower its final momentum, or lower the learning rate',
    ),
    Symptom(
        'agreement at chance',
        ('agreement', 'max_entropy'),
        lambda agreement, max_entropy: agreement <= 1.5 * math.exp(-max_entropy),
        'student and teacher choose the same prototype no more often than by chance',
        'lower the weight of KoLeo, weaken the augmentation, or lower the learning rate',
    ),
    Symptom(
        'similar encodings',
        ('encoding_cosine', 'cross_view_top1', 'cross_view_chance'),
        lambda encoding_cosine, cross_view_top1, cross_view_chance: (
            encoding_cosine > 0.98 and cross_view_top1 <= 2 * cross_view_chance
        ),
        'the encodings of all images are nearly the same, and no image finds its other view',
        'lower the learning rate or warm it up for longer; a nearly uniform assignment alone is not a reason to '
        'stop, so look at k-NN or a probe first',
    ),
)


@HOOKS.register_module()
class CollapseGuardHook(PretrainHook):
    """Watches the diagnostics of a method, averaged over an interval, for the symptoms of a collapse.

    A symptom that is present at several checks in a row is reported once, and again if it disappears and returns. NaN
    and infinite values are reported at once. Only the diagnostics that a model logs are checked, so that the hook works
    with any method.

    Args:
        interval (int): Iterations between checks, and over which values are averaged, at least 1. Defaults to 100.
        action (str): ``'warn'`` or ``'stop'``, which raises :class:`CollapseError`. Defaults to ``'warn'``.
        patience (int): Consecutive checks that must show a symptom, at least 1. Defaults to 3.
        begin (int): Iterations before the first check, while the bank fills. Defaults to 500.
    """

    # After the logged values have arrived in the message hub.
    priority = 'NORMAL'

    def __init__(self, interval: int = 100, action: str = 'warn', patience: int = 3, begin: int = 500) -> None:
        if action not in ('warn', 'stop'):
            raise ValueError(f"action must be 'warn' or 'stop', got {action!r}")
        if interval < 1 or patience < 1 or begin < 0:
            raise ValueError(f'expected interval >= 1, patience >= 1, begin >= 0, got {interval}, {patience}, {begin}')
        self.interval = self.history_window = interval
        self.action = action
        self.patience = patience
        self.begin = begin
        self._counts: dict[str, int] = {}

    def before_train(self, runner: Runner) -> None:
        self._counts = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 >= self.begin and self.every_n_train_iters(runner, self.interval):
            self.check(runner)

    def check(self, runner: Runner) -> None:
        """Look for all symptoms in the averages of the message hub."""
        watched = {name for symptom in SYMPTOMS for name in symptom.needs} | {'loss'}
        scalars = runner.message_hub.log_scalars
        values = {name: scalars[f'train/{name}'].mean(self.interval) for name in watched if f'train/{name}' in scalars}
        bad = sorted(name for name, value in values.items() if not math.isfinite(value))
        if bad:
            self._report(runner, f'Not finite: {", ".join(bad)}. Lower the learning rate or use float32.')
            return
        for symptom in SYMPTOMS:
            if not all(name in values for name in symptom.needs):
                continue
            read = {name: values[name] for name in symptom.needs}
            self._counts[symptom.name] = self._counts.get(symptom.name, 0) + 1 if symptom.holds(**read) else 0
            if self._counts[symptom.name] == self.patience:
                readings = ', '.join(f'{name} {value:.4g}' for name, value in read.items())
                self._report(
                    runner,
                    f'Signs of collapse ({symptom.name}; {readings}): {symptom.cause}. Try this: {symptom.remedy}.',
                )

    def _report(self, runner: Runner, message: str) -> None:
        message = f'Iteration {runner.iter + 1}: {message}'
        if self.action == 'stop':
            raise CollapseError(message)
        runner.logger.warning(message)
