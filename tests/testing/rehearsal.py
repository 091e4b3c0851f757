"""Rehearsals in a process of their own: the device that does not exist stays registered until a process ends."""

import json
import logging
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from mm_sop import compat
from mm_sop.engine.rehearsal import rehearse
from mm_sop.utils.config import find_pipeline, load_config, merge_options
from mm_sop.utils.fake_device import FakeDevice

CONFIGS = Path(__file__).parents[2] / 'configs'

# The loss scaler of PyTorch reads once a step whether a gradient is infinite, and inverts its scale in float64.
SCALER_WAITS = {'pretrain_optim_wrapper.py: reads a value': 1}
SCALER_FLOAT64 = {'pretrain_optim_wrapper.py: _to_copy': 1, 'pretrain_optim_wrapper.py: reciprocal': 1}

# Counters and seeds that the host reads once.
READ_ONCE = {'shared_random.py: reads a value', 'host_integer.py: reads a value'}


def one_process():
    """An executor whose calls share one new process."""
    return ProcessPoolExecutor(1, get_context('spawn'), prepare)


def prepare():
    compat.apply()
    logging.disable(logging.WARNING)


def observe(function, *args):
    """Call a function with the device: its result, and what has happened on the device."""
    with FakeDevice() as device:
        result = function(device, *args)
    found = {name: by_file(getattr(device, name)) for name in ('waits', 'uploads', 'float64')}
    return dict(found, operations=dict(device.operations), flops=device.flops, result=result)


def rehearse_config(path, options=None, iterations=2):
    """Faults in the steps of a config, with a batch of 8; empty if there is none."""
    cfg = load_config(path)
    merge_options(cfg, options or {})
    has_scaler = cfg.optim_wrapper.get('dtype') == 'float16'
    waits, float64 = (SCALER_WAITS, SCALER_FLOAT64) if has_scaler else ({}, {})
    faults = []
    for index, step in enumerate(rehearse(cfg, iterations, batch_size=8)):
        found = by_file(step.waits)
        if index == 0:
            found = {place: count for place, count in found.items() if place not in READ_ONCE}
        updates = index + 1 == iterations or not cfg.optim_wrapper.get('accumulative_counts')
        if found != (waits if updates else {}):
            faults.append(f'step {index} waits: {step.waits}')
        if by_file(step.float64) != (float64 if updates else {}):
            faults.append(f'step {index} has float64: {step.float64}')
        if step.host_values or not step.flops:
            faults.append(f'step {index} has {step.flops} operations and values on the host: {step.host_values}')
    return faults


def by_file(places):
    """Counts by the name of the file and the reason."""
    counts = {}
    for place, count in places.items():
        path, _, reason = place.partition(': ')
        name = ': '.join(filter(None, (path.rpartition('/')[2].partition(':')[0], reason)))
        counts[name] = counts.get(name, 0) + count
    return counts


def faults_in(folder):
    """Faults in the steps of all configs of a folder by name, each structure once."""
    seen, distinct = set(), []
    for path in sorted((CONFIGS / folder).rglob('*.py'), key=lambda path: (len(path.parts), path)):
        keys = [step_structure(load_config(path), whole) for whole in (True, False)]
        # An ablation of the architecture alone has the step of the others.
        if keys['ablations' in path.parts] not in seen:
            distinct.append(path)
        seen.update(keys)
    assert distinct
    with one_process() as executor:
        results = {path.stem: executor.submit(rehearse_config, path) for path in distinct}
        return {name: result.result() for name, result in results.items() if result.result()}


def step_structure(cfg, whole):
    """What decides which operations a step has: model, optimizer, hooks, and number, size and masks of the views."""
    views = [
        (step['type'], step.get('num_views'), [part['scale'] for part in find_parts(step, 'scale')])
        for step in find_pipeline(cfg)
        if step['type'] in ('MultiView', 'BlockMaskGenerator')
    ]
    data = cfg.train_dataloader.dataset.dataset
    hooks = [hook['type'] for hook in cfg.get('custom_hooks') or []]
    model = structure(cfg.model)
    if not whole:
        del model['backbone']['arch' if 'arch' in model['backbone'] else 'depth']
    return json.dumps([model, structure(cfg.optim_wrapper), views, data.get('mode'), hooks])


def find_parts(value, key):
    """Dicts with a key, anywhere in a value."""
    if isinstance(value, dict):
        yield from [value] if key in value else []
        value = list(value.values())
    for item in value if isinstance(value, (list, tuple)) else ():
        yield from find_parts(item, key)


def structure(value):
    """A part of a config without the numbers that only scale something; 0 and 1 may switch something off."""
    if isinstance(value, dict):
        return {name: structure(item) for name, item in sorted(value.items()) if name != 'init_cfg'}
    if isinstance(value, (list, tuple)):
        return [structure(item) for item in value]
    return value if isinstance(value, (bool, str)) or value in (0, 1, None) else 'number'
