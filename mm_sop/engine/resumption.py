"""Resumes a run from a checkpoint whose settings may differ from the current ones.

A checkpoint is translated into the terms of the new run before MMEngine loads it. The position is preserved in epochs
and samples. If anything that determines a schedule has changed, learning rate, weight decay and similar values become
those that an uninterrupted run with the new settings has at this position.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from mmengine.dist import get_world_size
from mmengine.model import BaseAveragedModel
from mmengine.optim import _ParamScheduler
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mm_sop.encoders.stored_config import parse_assignments
from mm_sop.engine.checkpoints import CheckpointError
from mm_sop.engine.optimizers.pretrain_optim_wrapper import accumulation_of
from mm_sop.utils.modules import batch_size_of, unwrap_model

Settings: TypeAlias = dict[str, Any]
"""What position and schedules of a run refer to, from :func:`describe_settings`."""

# Keys that change in the course of a run; the rest of a scheduler's state is its definition.
_PROGRESS = {'last_step', '_global_step', '_last_value', 'base_values', 'best', 'num_bad_epochs', 'cooldown_counter'}

# Keys of parameter groups that do not affect results.
_IMPLEMENTATION = {'params', 'param_name', 'fused', 'foreach', 'capturable', 'differentiable'}

_EFFECTS = dict(
    length='schedules follow it',
    batch_size='the position is preserved in epochs and samples',
    num_processes='the position is preserved in epochs and samples',
    accumulation='optimizer steps of the new size',
    num_images='images are ordered differently: within this epoch some may be repeated or left out',
)

# Sections of the config that training depends on, and keys in them that are compared elsewhere or have no influence.
_COMPARED = ('model', 'data_preprocessor', 'train_dataloader', 'optim_wrapper', 'custom_hooks')
_SKIPPED = (
    'model.init_cfg',
    'optim_wrapper.accumulative_counts',
    'optim_wrapper.optimizer',
    'train_dataloader.batch_size',
    'train_dataloader.num_workers',
    'train_dataloader.persistent_workers',
    'train_dataloader.pin_memory',
    'train_dataloader.prefetch_factor',
    'train_dataloader.sampler.seed',
)
_MAX_CONFIG_ROWS = 20


class Change(NamedTuple):
    """Row of the table of changed settings."""

    setting: str
    checkpoint: object
    now: object
    effect: str


def describe_settings(runner: Runner) -> Settings:
    """Collect what the position and the schedules of a run refer to, as numbers, strings and lists.

    Args:
        runner: Runner with its training loop and its optimizer wrapper built.
    """
    loader, wrapper = runner.train_dataloader, runner.optim_wrapper
    names = {parameter: name for name, parameter in unwrap_model(runner.model).named_parameters()}
    return dict(
        max_iters=runner.max_iters,
        batch_size=batch_size_of(loader),
        num_processes=get_world_size(),
        accumulation=accumulation_of(wrapper),
        num_images=len(loader.dataset),
        iters_per_epoch=len(loader),
        seeds=[part.seed for part in _seeded_parts(loader)],
        optimizer=type(wrapper.optimizer).__name__,
        schedulers=[type(scheduler).__name__ for scheduler in runner.param_schedulers or ()],
        parameters=[[names.get(each, '') for each in group['params']] for group in wrapper.optimizer.param_groups],
    )


def adapt_checkpoint(runner: Runner, checkpoint: dict) -> None:
    """Translate a loaded checkpoint into the terms of the new run, and log the changes as one table.

    With equal settings the checkpoint does not change, so that the continuation is bit-identical.

    Args:
        runner: Runner whose optimizer wrapper and schedulers are newly built, at step 0.
        checkpoint: Changed in place: position, optimizer, schedulers and counters of the model.

    Raises:
        CheckpointError: The optimizer has another type, or a schedule cannot be computed for the new settings.
    """
    before, now = _stored_settings(checkpoint), describe_settings(runner)
    _check_optimizer(before, now)
    changes = _compare_settings(before, now)
    changes += _keep_seeds(runner.train_dataloader, before, now)
    iteration = checkpoint['meta']['iter']
    position = translate_position(iteration, before, now)
    new_values = _compare_optimizers(runner, checkpoint, before, now)
    new_values += _compare_schedules(runner, checkpoint, before, now)
    if new_values or position != iteration:
        _rebuild_schedules(runner, checkpoint, position)
    if position != iteration:
        _move_counters(runner, checkpoint['state_dict'], iteration, position)
    global_batch = now['batch_size'] * now['num_processes']
    if _global_batch(before) != global_batch:
        # MoCo writes its queue in whole batches only; the content of the queue stays.
        for key, pointer in checkpoint['state_dict'].items():
            if key.split('.')[-1] == 'queue_ptr':
                pointer.sub_(pointer % global_batch)
    checkpoint['meta'].update(iter=position, epoch=position // now['iters_per_epoch'])
    changes += new_values + _compare_configs(runner, checkpoint)
    if changes or position != iteration:
        changes.append(_describe_move(iteration, position, before, now))
        runner.logger.warning(f'Resumed with changed settings:\n{_format_table(changes)}')


def translate_position(iteration: int, before: Settings, now: Settings) -> int:
    """Iteration of the new run after the same number of epochs, and of samples within the epoch.

    Samples that do not fill a global batch, or an optimizer step with accumulated gradients, are seen again.

    Args:
        iteration: Finished iterations of the old run.
        before: Settings of the old run; without ``batch_size`` the fraction of the epoch is preserved.
        now: Settings of the new run.

    Returns:
        Finished iterations of the new run; at least ``max_iters`` if nothing is left to train.
    """
    epochs, rest = divmod(iteration, before.get('iters_per_epoch') or now['iters_per_epoch'])
    length = now['iters_per_epoch']
    old_batch, new_batch = _global_batch(before), _global_batch(now)
    if old_batch is None or new_batch is None:
        within = rest * length // (before.get('iters_per_epoch') or length)
    else:
        within = min(rest * old_batch // new_batch, length)
    position = epochs * length + within
    return position if position >= now['max_iters'] else position - position % now['accumulation']


def samples_seen(checkpoint: dict) -> int:
    """Number of samples that a run has trained on up to a checkpoint, over all epochs and processes."""
    meta = checkpoint['meta']
    if 'position' in meta:
        return meta['position']['samples']
    return meta['iter'] * (_global_batch(_stored_settings(checkpoint)) or 0)


def describe_position(iteration: int, settings: Settings, samples: int) -> dict[str, int]:
    """Position of a run, to be saved in its checkpoint.

    Args:
        iteration: Finished iterations.
        settings: From :func:`describe_settings`.
        samples: Samples that the run has trained on in total.
    """
    epoch, within = divmod(iteration, settings['iters_per_epoch'])
    batch = settings['batch_size'] * settings['num_processes']
    return dict(epoch=epoch, samples_of_epoch=within * batch, samples=samples)


def _global_batch(settings: Settings) -> int | None:
    """Samples per iteration of all processes, or None if unknown."""
    batch_size, num_processes = settings.get('batch_size'), settings.get('num_processes')
    return batch_size * num_processes if batch_size and num_processes else None


def _stored_settings(checkpoint: dict) -> Settings:
    """Settings in a checkpoint; those of older checkpoints are read from the config as far as possible."""
    meta, state = checkpoint['meta'], checkpoint.get('pretrain') or {}
    if 'settings' in meta:
        return meta['settings']
    cfg = _parse_config(meta)
    loader, wrapper = cfg.get('train_dataloader') or {}, cfg.get('optim_wrapper') or {}
    sampler = loader.get('sampler') or {}
    length, max_epochs = state.get('iters_per_epoch'), (cfg.get('train_cfg') or {}).get('max_epochs')
    return dict(
        max_iters=length * max_epochs if length and max_epochs else None,
        batch_size=loader.get('batch_size'),
        num_processes=len(state.get('random_states') or ()) or None,
        accumulation=wrapper.get('accumulative_counts', 1) if wrapper else None,
        iters_per_epoch=length,
        seeds=[sampler.get('seed', meta.get('seed'))],
        optimizer=str((wrapper.get('optimizer') or {}).get('type', '')).split('.')[-1] or None,
    )


def _parse_config(meta: dict) -> dict:
    try:
        return parse_assignments(meta.get('cfg') or '')
    except SyntaxError:
        return {}


def _seeded_parts(loader: DataLoader) -> list[Any]:
    """Sampler and dataset wrappers that have a seed."""
    parts: list[Any] = [loader.sampler, loader.dataset]
    while hasattr(parts[-1], 'dataset'):
        parts.append(parts[-1].dataset)
    return [part for part in parts if isinstance(getattr(part, 'seed', None), int)]


def _check_optimizer(before: Settings, now: Settings) -> None:
    if before.get('optimizer') not in (None, now['optimizer']):
        raise CheckpointError(
            f'the checkpoint holds the state of {before["optimizer"]}, and optim_wrapper.optimizer.type is now '
            f'{now["optimizer"]}: resume with the optimizer of that run, or start from its weights only, with '
            'load_from and without --resume'
        )


def _compare_settings(before: Settings, now: Settings) -> list[Change]:
    old, new = (dict(settings, length=_describe_length(settings)) for settings in (before, now))
    return [
        Change(name.replace('_', ' '), old[name], new[name], effect)
        for name, effect in _EFFECTS.items()
        if old.get(name) is not None and old[name] != new[name]
    ]


def _describe_length(settings: Settings) -> str | None:
    iterations, length = settings.get('max_iters'), settings.get('iters_per_epoch')
    return f'{iterations / length:.4g} epochs, {iterations} iterations' if iterations and length else None


def _keep_seeds(loader: DataLoader, before: Settings, now: Settings) -> list[Change]:
    """Restore the seeds of order and augmentation of the images."""
    stored, parts = list(before.get('seeds') or now['seeds']), _seeded_parts(loader)
    # Older checkpoints contain only the seed of the sampler, which is that of the dataset by default.
    same = [part.seed == now['seeds'][0] for part in parts]
    stored += [stored[0] if same[index] else parts[index].seed for index in range(len(stored), len(parts))]
    changes = []
    for part, old, new in zip(parts, stored, now['seeds'], strict=False):
        if old not in (None, new):
            part.seed = old
            changes.append(Change('seed', old, new, f'stays {old}, so that images keep their order and augmentation'))
    return changes[:1]


def _compare_optimizers(runner: Runner, checkpoint: dict, before: Settings, now: Settings) -> list[Change]:
    """Compare base values of the parameter groups, and sort the optimizer's state by the current groups."""
    stored, groups = checkpoint['optimizer'], runner.optim_wrapper.optimizer.param_groups
    changes = _match_parameters(stored, before.get('parameters'), now['parameters'])
    for name in groups[0]:
        if name in _IMPLEMENTATION or name.startswith('initial_'):
            continue
        old, new = ([_base_value(group, name) for group in each] for each in (stored['param_groups'], groups))
        shown = _list_values(old), _list_values(new)
        if None not in old and (old != new if len(old) == len(new) else shown[0] != shown[1]):
            changes.append(Change(f'optimizer {name}', *shown, 'applied'))
    return changes


def _base_value(group: dict, name: str) -> Any:
    value = group.get(f'initial_{name}', group.get(name))
    return tuple(value) if isinstance(value, list) else value


def _list_values(values: Sequence) -> str:
    distinct = list(dict.fromkeys(f'{value:.4g}' if isinstance(value, float) else str(value) for value in values))
    return ', '.join(distinct) if len(distinct) < 4 else f'{distinct[0]} ... {distinct[-1]} ({len(distinct)} values)'


def _match_parameters(stored: dict, before: list[list[str]] | None, now: list[list[str]]) -> list[Change]:
    """Sort the optimizer's state by the current parameter groups.

    Args:
        stored: State dict of the optimizer, changed in place.
        before: Names of the parameters of each group in the checkpoint, None in older ones.
        now: The same in this run.
    """
    if before == now:
        return []
    sizes = [len(group['params']) for group in stored['param_groups']]
    if before is None:
        if sizes == [len(group) for group in now]:
            return []
        raise CheckpointError(
            f'the parameter groups of the optimizer have changed, from {len(sizes)} with {sum(sizes)} tensors to '
            f'{len(now)} with {sum(map(len, now))}, and the checkpoint does not name them: resume with the '
            'optim_wrapper of that run, or start from its weights only, with load_from and without --resume'
        )
    names_before, names_now = ([name for group in groups for name in group] for groups in (before, now))
    index = {name: position for position, name in enumerate(names_before)}
    state = stored['state']
    stored['state'] = {
        position: state[index[name]]
        for position, name in enumerate(names_now)
        if name in index and index[name] in state
    }
    added, removed = set(names_now) - set(names_before), set(names_before) - set(names_now)
    effect = f'applied; {len(added)} start without optimizer state, {len(removed)} are no longer trained'
    old, new = f'{len(before)} groups, {len(names_before)} tensors', f'{len(now)} groups, {len(names_now)} tensors'
    return [Change('optimizer parameters', old, new, effect if added or removed else 'applied')]


def _compare_schedules(runner: Runner, checkpoint: dict, before: Settings, now: Settings) -> list[Change]:
    stored = [_definition(state) for state in checkpoint.get('param_schedulers') or ()]
    present = [_definition(scheduler.state_dict()) for scheduler in runner.param_schedulers or ()]
    names = now['schedulers']
    if len(stored) != len(present) or before.get('schedulers', names) != names:
        found = before.get('schedulers') or [f'{len(stored)} schedules']
        return [Change('param_scheduler', ', '.join(found), ', '.join(names), 'computed from the start')]
    changes = []
    for index, (old, new) in enumerate(zip(stored, present, strict=True)):
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if keys:
            was, becomes = (' '.join(f'{key}={each.get(key)}' for key in keys) for each in (old, new))
            changes.append(Change(f'{names[index]} of {new["param_name"]}', was, becomes, 'computed from the start'))
    return changes


def _definition(state: dict) -> dict:
    """State of a scheduler without its progress."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in state.items() if key not in _PROGRESS
    }


def _rebuild_schedules(runner: Runner, checkpoint: dict, position: int) -> None:
    """Replace the schedules' state in the checkpoint by that of the new schedules at a position."""
    schedulers = runner.param_schedulers or []
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
        raise CheckpointError(
            'schedules that follow validation results, such as ReduceOnPlateauLR, cannot be computed for changed '
            'settings: resume with the settings of that run, or leave out such schedules'
        )
    fast_forward(schedulers, position, len(runner.train_dataloader))
    new = runner.optim_wrapper.state_dict()
    values = {key: new[key] for key in ('param_groups', 'base_param_settings') if key in new}
    checkpoint['optimizer'] = dict(checkpoint['optimizer'], **values)
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]


def fast_forward(schedulers: Sequence[_ParamScheduler], iteration: int, iters_per_epoch: int) -> None:
    """Step new schedulers as a run does in its first iterations.

    MMEngine's schedulers are recursive and modify each other's values, so that every step must be executed.

    Args:
        schedulers: Changed in place, as is their optimizer.
        iteration: Number of iterations.
        iters_per_epoch: Length of an epoch in iterations.
    """
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    with warnings.catch_warnings():
        # The schedulers warn that the optimizer makes no steps.
        warnings.simplefilter('ignore', UserWarning)
        for finished in range(1, iteration + 1):
            for scheduler in by_iteration:
                scheduler.step()
            if finished % iters_per_epoch == 0:
                for scheduler in by_epoch:
                    scheduler.step()


def _move_counters(runner: Runner, state_dict: dict, iteration: int, position: int) -> None:
    """Convert the update counters of target networks, such as MMPretrain's CosineEMA, to those of the new run."""
    for name, module in unwrap_model(runner.model).named_modules():
        key = f'{name}.steps'.lstrip('.')
        if isinstance(module, BaseAveragedModel) and key in state_dict and iteration:
            moved = int(state_dict[key]) * position // iteration
            # With 0, the target would become a copy of the network.
            state_dict[key].fill_(moved or module.interval)


def _compare_configs(runner: Runner, checkpoint: dict) -> list[Change]:
    """List the other differences between the configs, which need no adaptation."""
    stored, present = (
        dict(_flatten({key: value for key, value in cfg.items() if key in _COMPARED}))
        for cfg in (_parse_config(checkpoint['meta']), _parse_config(dict(cfg=runner.cfg.pretty_text)))
    )
    if not stored:
        return []
    keys = [key for key in dict.fromkeys((*stored, *present)) if not key.startswith(_SKIPPED)]
    changes = [
        Change(key, stored.get(key, 'not set'), present.get(key, 'not set'), 'used from here on')
        for key in keys
        if stored.get(key, 'not set') != present.get(key, 'not set')
    ]
    omitted = len(changes) - _MAX_CONFIG_ROWS
    more = [Change(f'{omitted} more of the config', '', '', 'used from here on')] if omitted > 0 else []
    return changes[:_MAX_CONFIG_ROWS] + more


def _flatten(tree: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; lists of dicts yield their length as well."""
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        yield f'{path} entries', len(tree)
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _flatten(value, f'{path}.{key}'.lstrip('.'))


def _describe_move(iteration: int, position: int, before: Settings, now: Settings) -> Change:
    length, batch = now['iters_per_epoch'], now['batch_size'] * now['num_processes']
    epoch, within = divmod(position, length)
    effect = f'continues in epoch {epoch + 1} after {within * batch} samples'
    if position >= now['max_iters']:
        effect = 'nothing is left to train'
    elif before.get('iters_per_epoch') and (old_batch := _global_batch(before)):
        old_epoch, old_within = divmod(iteration, before['iters_per_epoch'])
        done = position - old_epoch * length
        repeated = old_within * old_batch - done * batch
        # At the end of an epoch the last images, which do not fill a batch, are left out instead.
        effect += f'; {repeated} more, seen before, are repeated' if repeated > 0 and done < length else ''
    return Change('position', f'iteration {iteration}', f'iteration {position} of {now["max_iters"]}', effect)


def _format_table(changes: list[Change]) -> str:
    rows = [('setting', 'checkpoint', 'now', 'what happens'), *(tuple(map(_shorten, change)) for change in changes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shorten(value: object, length: int = 90) -> str:
    text = str(value)
    return text if len(text) <= length else f'{text[: length - 3]}...'
