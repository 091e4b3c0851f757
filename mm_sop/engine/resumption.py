"""Continues a run from a checkpoint whose settings may differ from the present ones.

A checkpoint is translated into the terms of the new run before MMEngine loads it. The position is kept in epochs and
samples. If anything that determines a schedule has changed, learning rate, weight decay and the like become those that
an uninterrupted run with the new settings has at this position.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from mmengine.dist import get_world_size
from mmengine.model import BaseAveragedModel
from mmengine.optim import _ParamScheduler
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mm_sop.engine.checkpoints import CheckpointError
from mm_sop.engine.stored_config import parse_assignments
from mm_sop.engine.utils import batch_size_of, unwrap_model

# What changes in the course of a run; everything else in the state of a scheduler is its definition.
_PROGRESS = {'last_step', '_global_step', '_last_value', 'base_values', 'best', 'num_bad_epochs', 'cooldown_counter'}

# Keys of parameter groups that change no result.
_IMPLEMENTATION = {'params', 'param_name', 'fused', 'foreach', 'capturable', 'differentiable'}

_EFFECTS = dict(
    length='schedules follow it',
    batch_size='the position is kept in epochs and samples',
    num_processes='the position is kept in epochs and samples',
    accumulation='optimizer steps of the new size',
    num_images='images are ordered differently: within this epoch some may be repeated or left out',
)

# Parts of the config that training depends on, and what of them is compared elsewhere or has no influence.
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
    """A row of the table of changes."""

    setting: str
    checkpoint: object
    now: object
    effect: str


def describe_settings(runner: Runner) -> dict:
    """Collect what the position and the schedules of a run refer to.

    Args:
        runner: Runner with its training loop and its optimizer wrapper built.

    Returns:
        Numbers, strings and lists, which a checkpoint can hold.
    """
    loader, wrapper = runner.train_dataloader, runner.optim_wrapper
    names = {parameter: name for name, parameter in unwrap_model(runner.model).named_parameters()}
    return dict(
        max_iters=runner.max_iters,
        batch_size=batch_size_of(loader),
        num_processes=get_world_size(),
        accumulation=wrapper._accumulative_counts,
        num_images=len(loader.dataset),
        iters_per_epoch=len(loader),
        seeds=[part.seed for part in _seeded_parts(loader)],
        optimizer=type(wrapper.optimizer).__name__,
        schedulers=[type(scheduler).__name__ for scheduler in runner.param_schedulers or ()],
        parameters=[[names.get(each, '') for each in group['params']] for group in wrapper.optimizer.param_groups],
    )


def adapt_checkpoint(runner: Runner, checkpoint: dict) -> None:
    """Translate a loaded checkpoint into the terms of the new run, and log what has changed as one table.

    Nothing is changed if the settings are the same, so that the continuation is bit-identical.

    Args:
        runner: Runner whose optimizer wrapper and schedulers are newly built, at step 0.
        checkpoint: Changed in place: position, optimizer, schedulers and counters of the model.

    Raises:
        CheckpointError: The optimizer is another one, or a schedule cannot be computed for the new settings.
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
    if _global_batch(before) != _global_batch(now):
        _align_queues(checkpoint['state_dict'], _global_batch(now))
    checkpoint['meta'].update(iter=position, epoch=position // now['iters_per_epoch'])
    changes += new_values + _compare_configs(runner, checkpoint)
    if changes or position != iteration:
        changes.append(_describe_move(iteration, position, before, now))
        runner.logger.warning(f'Resumed with changed settings:\n{_format_table(changes)}')


def translate_position(iteration: int, before: dict, now: dict) -> int:
    """Iteration of the new run at which as many epochs, and samples of the present one, have been seen.

    Samples that do not fill a global batch, or a step of the optimizer where gradients are accumulated, are seen again.

    Args:
        iteration: Finished iterations of the old run.
        before: Settings of the old run; without ``batch_size`` the fraction of the epoch is kept.
        now: Settings of the new run.

    Returns:
        Finished iterations in terms of the new run; at least ``max_iters`` if nothing is left to train.
    """
    epochs, rest = divmod(iteration, before.get('iters_per_epoch') or now['iters_per_epoch'])
    length = now['iters_per_epoch']
    batches = _global_batch(before), _global_batch(now)
    if None in batches:
        within = rest * length // (before.get('iters_per_epoch') or length)
    else:
        within = min(rest * batches[0] // batches[1], length)
    position = epochs * length + within
    return position if position >= now['max_iters'] else position - position % now['accumulation']


def samples_seen(checkpoint: dict) -> int:
    """Samples that a run has trained on up to a checkpoint, in all epochs and processes."""
    meta = checkpoint['meta']
    return (
        meta['position']['samples']
        if 'position' in meta
        else meta['iter'] * (_global_batch(_stored_settings(checkpoint)) or 0)
    )


def describe_position(iteration: int, settings: dict, samples: int) -> dict:
    """Position of a run for its checkpoint.

    Args:
        iteration: Finished iterations.
        settings: Of :func:`describe_settings`.
        samples: Samples that the run has trained on, in all.
    """
    epoch, within = divmod(iteration, settings['iters_per_epoch'])
    return dict(epoch=epoch, samples_of_epoch=within * _global_batch(settings), samples=samples)


def _global_batch(settings: dict) -> int | None:
    """Samples of one iteration of all processes."""
    batch_size, num_processes = settings.get('batch_size'), settings.get('num_processes')
    return batch_size * num_processes if batch_size and num_processes else None


def _stored_settings(checkpoint: dict) -> dict:
    """Settings in a checkpoint; older ones are read from its config, as far as they go."""
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


def _seeded_parts(loader: DataLoader) -> list:
    """Sampler and dataset wrappers that own a seed."""
    parts, dataset = [loader.sampler], loader.dataset
    while dataset is not None:
        parts.append(dataset)
        dataset = getattr(dataset, 'dataset', None)
    return [part for part in parts if isinstance(getattr(part, 'seed', None), int)]


def _check_optimizer(before: dict, now: dict) -> None:
    if before.get('optimizer') not in (None, now['optimizer']):
        raise CheckpointError(
            f'the checkpoint holds the state of {before["optimizer"]}, and optim_wrapper.optimizer.type is now '
            f'{now["optimizer"]}: resume with the optimizer of that run, or start from its weights only, with '
            'load_from and without --resume'
        )


def _compare_settings(before: dict, now: dict) -> list[Change]:
    old, new = (dict(settings, length=_describe_length(settings)) for settings in (before, now))
    return [
        Change(name.replace('_', ' '), old[name], new[name], effect)
        for name, effect in _EFFECTS.items()
        if old.get(name) is not None and old[name] != new[name]
    ]


def _describe_length(settings: dict) -> str | None:
    iterations, length = settings.get('max_iters'), settings.get('iters_per_epoch')
    return f'{iterations / length:.4g} epochs, {iterations} iterations' if iterations and length else None


def _keep_seeds(loader: DataLoader, before: dict, now: dict) -> list[Change]:
    """Let the order and the augmentation of the images go on as they were."""
    stored, parts = list(before.get('seeds') or now['seeds']), _seeded_parts(loader)
    # Older checkpoints know the seed of the sampler only, which is that of the dataset by default.
    same = [part.seed == now['seeds'][0] for part in parts]
    stored += [stored[0] if same[index] else parts[index].seed for index in range(len(stored), len(parts))]
    changes = []
    for part, old, new in zip(parts, stored, now['seeds'], strict=False):
        if old not in (None, new):
            part.seed = old
            changes.append(Change('seed', old, new, f'stays {old}, so that images keep their order and augmentation'))
    return changes[:1]


def _compare_optimizers(runner: Runner, checkpoint: dict, before: dict, now: dict) -> list[Change]:
    """Compare base values of the parameter groups; give the optimizer's state the order of the present groups."""
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


def _base_value(group: dict, name: str):
    value = group.get(f'initial_{name}', group.get(name))
    return tuple(value) if isinstance(value, list) else value


def _list_values(values: Sequence) -> str:
    distinct = list(dict.fromkeys(f'{value:.4g}' if isinstance(value, float) else str(value) for value in values))
    return ', '.join(distinct) if len(distinct) < 4 else f'{distinct[0]} ... {distinct[-1]} ({len(distinct)} values)'


def _match_parameters(stored: dict, before: list | None, now: list) -> list[Change]:
    """Sort the optimizer's state by the present parameter groups."""
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
    names_before, names_now = sum(before, []), sum(now, [])
    index = {name: position for position, name in enumerate(names_before)}
    state = stored['state']
    stored['state'] = {
        position: state[index[name]]
        for position, name in enumerate(names_now)
        if name in index and index[name] in state
    }
    added, removed = set(names_now) - set(names_before), set(names_before) - set(names_now)
    effect = f'applied; {len(added)} start without optimizer state, {len(removed)} are no longer trained'
    groups = [f'{len(each)} groups, {len(names)} tensors' for each, names in ((before, names_before), (now, names_now))]
    return [Change('optimizer parameters', *groups, effect if added or removed else 'applied')]


def _compare_schedules(runner: Runner, checkpoint: dict, before: dict, now: dict) -> list[Change]:
    stored = [_definition(state) for state in checkpoint.get('param_schedulers') or ()]
    present = [_definition(scheduler.state_dict()) for scheduler in runner.param_schedulers or ()]
    names = now['schedulers']
    if len(stored) != len(present) or before.get('schedulers', names) != names:
        found = before.get('schedulers') or [f'{len(stored)} schedules']
        return [Change('param_scheduler', ', '.join(found), ', '.join(names), 'computed from the start')]
    changes = []
    for index, (old, new) in enumerate(zip(stored, present, strict=True)):
        keys = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
        if keys:
            values = [' '.join(f'{key}={each.get(key)}' for key in sorted(keys)) for each in (old, new)]
            changes.append(Change(f'{names[index]} of {new["param_name"]}', *values, 'computed from the start'))
    return changes


def _definition(state: dict) -> dict:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in state.items() if key not in _PROGRESS
    }


def _rebuild_schedules(runner: Runner, checkpoint: dict, position: int) -> None:
    """Put the values of the new schedules at the position into the checkpoint."""
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

    MMEngine's schedulers are recursive and act upon each other's values, so that each step must be taken.

    Args:
        schedulers: They and their optimizer are changed in place.
        iteration: Number of iterations.
        iters_per_epoch: Length of an epoch.
    """
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    with warnings.catch_warnings():
        # The schedulers miss the steps of the optimizer.
        warnings.simplefilter('ignore', UserWarning)
        for finished in range(1, iteration + 1):
            for scheduler in by_iteration:
                scheduler.step()
            if finished % iters_per_epoch == 0:
                for scheduler in by_epoch:
                    scheduler.step()


def _move_counters(runner: Runner, state_dict: dict, iteration: int, position: int) -> None:
    """Let target networks that count their updates, such as MMPretrain's CosineEMA, count those of the new run."""
    for name, module in unwrap_model(runner.model).named_modules():
        key = f'{name}.steps'.lstrip('.')
        if isinstance(module, BaseAveragedModel) and key in state_dict and iteration:
            moved = int(state_dict[key]) * position // iteration
            # At 0 the target would become a copy of the network.
            state_dict[key].fill_(moved or module.interval)


def _align_queues(state_dict: dict, global_batch: int) -> None:
    """MoCo's queue is written in whole batches only; its content stays."""
    for key, pointer in state_dict.items():
        if key.split('.')[-1] == 'queue_ptr':
            pointer -= pointer % global_batch


def _compare_configs(runner: Runner, checkpoint: dict) -> list[Change]:
    """Other differences between the configs: values that apply by themselves."""
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
    left_out = len(changes) - _MAX_CONFIG_ROWS
    more = [Change(f'{left_out} more of the config', '', '', 'used from here on')] if left_out > 0 else []
    return changes[:_MAX_CONFIG_ROWS] + more


def _flatten(tree, path: str = ''):
    """Dotted keys and values; lists of another length differ as a whole."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        yield f'{path} entries', len(tree)
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for key, value in items:
        yield from _flatten(value, f'{path}.{key}'.lstrip('.'))


def _describe_move(iteration: int, position: int, before: dict, now: dict) -> Change:
    length, batch = now['iters_per_epoch'], _global_batch(now)
    epoch, within = divmod(position, length)
    effect = f'continues in epoch {epoch + 1} after {within * batch} samples'
    if position >= now['max_iters']:
        effect = 'nothing is left to train'
    elif before.get('iters_per_epoch') and _global_batch(before):
        old_epoch, old_within = divmod(iteration, before['iters_per_epoch'])
        done = position - old_epoch * length
        repeated = old_within * _global_batch(before) - done * batch
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
