"""Resumes a run from a checkpoint whose settings may differ from the current ones.

A checkpoint is translated into the terms of the new run before MMEngine loads it. The position is preserved in epochs
and samples. If anything that determines a schedule has changed, learning rate, weight decay and similar values become
those that an uninterrupted run with the new settings has at this position.
"""

import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

from mmengine.dist import get_world_size
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner
from tabulate import tabulate
from torch.utils.data import DataLoader

from mm_sop.encoders.safe_config import parse_assignments
from mm_sop.engine.checkpoints import CheckpointError
from mm_sop.engine.optimizers.pretrain_optim_wrapper import accumulation_of
from mm_sop.utils.modules import batch_size_of, unwrap_model

Settings: TypeAlias = dict[str, Any]
"""What position and schedules of a run refer to, from :func:`describe_settings`."""

Change: TypeAlias = tuple[str, object, object, str]
"""Row of the table of changed settings: name, value in the checkpoint, value now, and what happens."""

# Keys that change in the course of a run; the rest of a scheduler's state is its definition.
_PROGRESS = {'last_step', '_global_step', '_last_value', 'base_values', 'best', 'num_bad_epochs', 'cooldown_counter'}

# Keys of parameter groups that do not affect results: those that choose kernels, and names.
_KERNELS = {'fused', 'foreach', 'capturable', 'differentiable'}
_WITHOUT_EFFECT = {'params', 'param_name', *_KERNELS}

# Optimizers whose state another one continues.
_PREDECESSORS = dict(FastLARS='LARS')

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
    'model.init_cfg', 'optim_wrapper.accumulative_counts', 'optim_wrapper.optimizer', 'train_dataloader.batch_size',
    'train_dataloader.num_workers', 'train_dataloader.persistent_workers', 'train_dataloader.pin_memory',
    'train_dataloader.prefetch_factor', 'train_dataloader.sampler.seed',
)  # fmt: skip
_MAX_CONFIG_ROWS = 20


def describe_settings(runner: Runner) -> Settings:
    """Collect what the position and the schedules of a run refer to, as numbers, strings and lists.

    The runner's training loop and its optimizer wrapper must be built.
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
    if before.get('optimizer') not in (None, now['optimizer'], _PREDECESSORS.get(now['optimizer'])):
        raise CheckpointError(
            f'the checkpoint holds the state of {before["optimizer"]}, and optim_wrapper.optimizer.type is now '
            f'{now["optimizer"]}: resume with the optimizer of that run, or start from its weights only, with '
            'load_from and without --resume'
        )
    iteration = checkpoint['meta']['iter']
    position = translate_position(iteration, before, now)
    changes = _compare_settings(before, now) + _keep_seeds(runner.train_dataloader, before, now)
    new_values = _match_parameters(checkpoint['optimizer'], before.get('parameters'), now['parameters'])
    groups = runner.optim_wrapper.optimizer.param_groups
    new_values += _compare_optimizers(checkpoint['optimizer'], groups)
    for stored, group in zip(checkpoint['optimizer']['param_groups'], groups, strict=False):
        stored.update({name: group[name] for name in _KERNELS & group.keys()})
    new_values += _compare_schedules(runner, checkpoint, before, now)
    if new_values or position != iteration:
        _rebuild_schedules(runner, checkpoint, position)
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
        cells = [[text if len(text) <= 90 else f'{text[:87]}...' for text in map(str, change)] for change in changes]
        table = tabulate(cells, ('setting', 'checkpoint', 'now', 'what happens'), 'plain', disable_numparse=True)
        runner.logger.warning(f'Resumed with changed settings:\n{table}')


def translate_position(iteration: int, before: Settings, now: Settings) -> int:
    """Iteration of the new run after the same number of epochs, and of samples within the epoch.

    Samples that do not fill a global batch, or an optimizer step with accumulated gradients, are seen again. If
    ``before`` has no ``batch_size``, the fraction of the epoch is preserved. The result is at least ``max_iters`` if
    nothing is left to train.
    """
    length = now['iters_per_epoch']
    old_length = before.get('iters_per_epoch') or length
    epochs, rest = divmod(iteration, old_length)
    old_batch, new_batch = _global_batch(before), _global_batch(now)
    if old_batch is None or new_batch is None:
        within = rest * length // old_length
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
    length, max_epochs = state.get('iters_per_epoch'), (cfg.get('train_cfg') or {}).get('max_epochs')
    return dict(
        max_iters=length * max_epochs if length and max_epochs else None,
        batch_size=loader.get('batch_size'),
        num_processes=len(state.get('random_states') or ()) or None,
        accumulation=wrapper.get('accumulative_counts', 1) if wrapper else None,
        iters_per_epoch=length,
        seeds=[(loader.get('sampler') or {}).get('seed', meta.get('seed'))],
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


def _compare_settings(before: Settings, now: Settings) -> list[Change]:
    old, new = dict(before), dict(now)
    for settings in (old, new):
        iterations, length = settings.get('max_iters'), settings.get('iters_per_epoch')
        if iterations and length:
            settings['length'] = f'{iterations / length:.4g} epochs, {iterations} iterations'
    return [
        (name.replace('_', ' '), old[name], new[name], effect)
        for name, effect in _EFFECTS.items()
        if old.get(name) is not None and old[name] != new[name]
    ]


def _keep_seeds(loader: DataLoader, before: Settings, now: Settings) -> list[Change]:
    """Restore the seeds of order and augmentation of the images."""
    seeds, stored = now['seeds'], list(before.get('seeds') or now['seeds'])
    # Older checkpoints contain only the seed of the sampler, which is that of the dataset by default.
    stored += [stored[0] if seed == seeds[0] else seed for seed in seeds[len(stored) :]]
    changes: list[Change] = []
    for part, old, new in zip(_seeded_parts(loader), stored, seeds, strict=False):
        if old not in (None, new):
            part.seed = old
            changes.append(('seed', old, new, f'stays {old}, so that images keep their order and augmentation'))
    return changes[:1]


def _match_parameters(stored: dict, before: list[list[str]] | None, now: list[list[str]]) -> list[Change]:
    """Sort the optimizer's state, in place, by the current parameter groups.

    ``before`` and ``now`` are the names of the parameters of each group; older checkpoints have none.
    """
    if before == now:
        return []
    if before is None:
        sizes = [len(group['params']) for group in stored['param_groups']]
        if sizes == [len(group) for group in now]:
            return []
        raise CheckpointError(
            f'the parameter groups of the optimizer have changed, from {len(sizes)} with {sum(sizes)} tensors to '
            f'{len(now)} with {sum(map(len, now))}, and the checkpoint does not name them: resume with the '
            'optim_wrapper of that run, or start from its weights only, with load_from and without --resume'
        )
    names_before, names_now = ([name for group in groups for name in group] for groups in (before, now))
    state = {name: stored['state'][index] for index, name in enumerate(names_before) if index in stored['state']}
    stored['state'] = {index: state[name] for index, name in enumerate(names_now) if name in state}
    added, removed = set(names_now) - set(names_before), set(names_before) - set(names_now)
    effect = f'applied; {len(added)} start without optimizer state, {len(removed)} are no longer trained'
    old, new = f'{len(before)} groups, {len(names_before)} tensors', f'{len(now)} groups, {len(names_now)} tensors'
    return [('optimizer parameters', old, new, effect if added or removed else 'applied')]


def _compare_optimizers(stored: dict, groups: list[dict]) -> list[Change]:
    """Compare the values of the parameter groups that schedules start from."""
    changes: list[Change] = []
    for name in groups[0]:
        if name in _WITHOUT_EFFECT or name.startswith('initial_'):
            continue
        old, new = (
            [_comparable(group.get(f'initial_{name}', group.get(name))) for group in each]
            for each in (stored['param_groups'], groups)
        )
        shown = _list_values(old), _list_values(new)
        if None not in old and (old != new if len(old) == len(new) else shown[0] != shown[1]):
            changes.append((f'optimizer {name}', *shown, 'applied'))
    return changes


def _comparable(value: Any) -> Any:
    """A tuple becomes a list in some checkpoints."""
    return tuple(value) if isinstance(value, list) else value


def _list_values(values: list) -> str:
    distinct = list(dict.fromkeys(f'{value:.4g}' if isinstance(value, float) else str(value) for value in values))
    return ', '.join(distinct) if len(distinct) < 4 else f'{distinct[0]} ... {distinct[-1]} ({len(distinct)} values)'


def _compare_schedules(runner: Runner, checkpoint: dict, before: Settings, now: Settings) -> list[Change]:
    names, states = now['schedulers'], [scheduler.state_dict() for scheduler in runner.param_schedulers or ()]
    stored, present = (
        [{key: _comparable(value) for key, value in state.items() if key not in _PROGRESS} for state in each]
        for each in (checkpoint.get('param_schedulers') or (), states)
    )
    if len(stored) != len(present) or before.get('schedulers', names) != names:
        found = before.get('schedulers') or [f'{len(stored)} schedules']
        return [('param_scheduler', ', '.join(found), ', '.join(names), 'computed from the start')]
    changes: list[Change] = []
    for name, old, new in zip(names, stored, present, strict=True):
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if keys:
            was, becomes = (' '.join(f'{key}={each.get(key)}' for key in keys) for each in (old, new))
            changes.append((f'{name} of {new["param_name"]}', was, becomes, 'computed from the start'))
    return changes


def _rebuild_schedules(runner: Runner, checkpoint: dict, position: int) -> None:
    """Replace the schedules' state in the checkpoint by that of the new schedules at a position.

    MMEngine's schedulers are recursive and modify each other's values, so that every step must be executed.
    """
    schedulers = runner.param_schedulers or []
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
        raise CheckpointError(
            'schedules that follow validation results, such as ReduceOnPlateauLR, cannot be computed for changed '
            'settings: resume with the settings of that run, or leave out such schedules'
        )
    iters_per_epoch = len(runner.train_dataloader)
    # In the order of a run: the hook steps those of epochs after the iteration.
    ordered = sorted(schedulers, key=lambda scheduler: scheduler.by_epoch)
    with warnings.catch_warnings():
        # The schedulers warn that the optimizer makes no steps.
        warnings.simplefilter('ignore', UserWarning)
        for finished in range(1, position + 1):
            for scheduler in ordered:
                if not scheduler.by_epoch or finished % iters_per_epoch == 0:
                    scheduler.step()
    new = runner.optim_wrapper.state_dict()
    checkpoint['optimizer'].update({key: new[key] for key in ('param_groups', 'base_param_settings') if key in new})
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]


def _move_counters(runner: Runner, state_dict: dict, iteration: int, position: int) -> None:
    """Convert the update counters of target networks, such as MMPretrain's CosineEMA, to those of the new run."""
    if iteration in (0, position):
        return
    for name, module in unwrap_model(runner.model).named_modules():
        key = f'{name}.steps'.lstrip('.')
        if isinstance(module, BaseAveragedModel) and key in state_dict:
            moved = int(state_dict[key]) * position // iteration
            # With 0, the target would become a copy of the network.
            state_dict[key].fill_(moved or module.interval)


def _compare_configs(runner: Runner, checkpoint: dict) -> list[Change]:
    """List the other differences between the configs, which need no adaptation."""
    stored, present = (
        dict(_flatten({key: value for key, value in _parse_config(meta).items() if key in _COMPARED}))
        for meta in (checkpoint['meta'], dict(cfg=runner.cfg.pretty_text))
    )
    if not stored:
        return []
    changes: list[Change] = []
    for key in dict.fromkeys((*stored, *present)):
        old, new = stored.get(key, 'not set'), present.get(key, 'not set')
        if old != new and not key.startswith(_SKIPPED):
            changes.append((key, old, new, 'used from here on'))
    omitted = len(changes) - _MAX_CONFIG_ROWS
    if omitted > 0:
        changes[_MAX_CONFIG_ROWS:] = [(f'{omitted} more of the config', '', '', 'used from here on')]
    return changes


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
    return 'position', f'iteration {iteration}', f'iteration {position} of {now["max_iters"]}', effect
