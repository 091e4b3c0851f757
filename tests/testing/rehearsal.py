"""Rehearsals in a process of their own: the device that does not exist stays registered until a process ends."""

import json
import logging
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from mmengine.registry import init_default_scope

from mm_sop import compat
from mm_sop.engine.rehearsal import LEFT_OUT, rehearse, without_memory
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
    init_default_scope('mmpretrain')
    logging.disable(logging.WARNING)


def portable(function):
    """Errors as text: those of PyTorch's operators cannot be sent to another process."""

    @wraps(function)
    def call(*args):
        try:
            return function(*args)
        except Exception:
            raise RuntimeError(traceback.format_exc()) from None

    return call


@portable
def observe(function, *args):
    """Call a function with the device: its result, and what has happened on the device."""
    with FakeDevice() as device:
        result = function(device, *args)
    found = {name: by_file(getattr(device, name)) for name in ('waits', 'uploads', 'float64')}
    return dict(found, operations=dict(device.operations), flops=device.flops, result=result)


@portable
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


def faults_in(folder, process):
    """Faults in the steps of all configs of a folder by name, each structure once, with the largest views."""
    paths = sorted((CONFIGS / folder).rglob('*.py'), key=lambda path: (len(path.parts), path))
    configs = {path: load_config(path) for path in paths}
    distinct = {}
    for path in sorted(paths, key=lambda path: -view_size(configs[path])):
        distinct.setdefault(step_structure(configs[path]), path)
    assert distinct
    results = {path.stem: process.submit(rehearse_config, path) for path in distinct.values()}
    return {name: result.result() for name, result in results.items() if result.result()}


def view_size(cfg):
    return max(part['scale'] for part in find_parts(find_pipeline(cfg), 'scale'))


def step_structure(cfg):
    """What decides which operations a step has: model, optimizer, hooks, and number and masks of the views."""
    views = [
        (step['type'], step.get('num_views'), step.get('partner_views'))
        for step in find_pipeline(cfg)
        if step['type'] in ('FastMultiView', 'BlockMaskGenerator')
    ]
    data = cfg.train_dataloader.dataset.dataset
    hooks = [hook['type'] for hook in cfg.get('custom_hooks') or [] if hook['type'] not in LEFT_OUT]
    model = structure(cfg.model)
    for name in ('arch', 'depth', 'stem_channels', 'base_channels', 'img_size'):
        model['backbone'].pop(name, None)
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


def evaluate(protocols, folder):
    """Run protocols with an encoder on the device; what happened there by protocol."""
    from mm_sop.evaluation.context import build_protocol
    from testing.evaluation_encoders import make_context, run, write_classes

    write_classes(Path(folder, 'data', 'train'), 12)
    write_classes(Path(folder, 'data', 'val'), 4, seed=1)

    def run_on_device(device, name, options):
        context = make_context(Path(folder, 'data'), Path(folder, name))
        device.move(context.encoder)
        # Tensors without numbers cannot be saved.
        with mock.patch('torch.save'):
            return sorted(run(build_protocol(name, options), context).scores)

    return {name: observe(run_on_device, name, options) for name, options in protocols.items()}


def detection_losses(device, config, size):
    """Devices of the losses of a detector, with gradients, for mmdet's random boxes and masks."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs

    cfg = load_config(CONFIGS / f'detection/{config}.py')
    # More than 10,000 boxes would be suppressed class by class, in a loop over made-up numbers of classes.
    cfg.model.train_cfg.rpn_proposal.nms_pre = 1000
    init_default_scope('mmdet')
    with without_memory():
        model = MODELS.build(cfg.model)
    device.move(model).train()
    batch = demo_mm_inputs(1, [(3, size, size)], num_classes=80, num_items=[5], with_mask=True)
    with operators_on_device():
        with torch.autocast('gpu', torch.bfloat16):
            losses = model(**model.data_preprocessor(batch, True), mode='loss')
        total, values = model.parse_losses(losses)
        total.backward()
    return {name: str(value.device) for name, value in values.items()}


@contextmanager
def operators_on_device():
    """MMCV's compiled operators, which know no such device, do nothing, and NMS keeps half of the boxes.

    MMEngine indexes with tensors of the CPU and of CUDA only.
    """
    import mmcv.ops  # noqa: F401
    from mmengine.structures import instance_data

    nms, roi_align = (sys.modules[f'mmcv.ops.{name}'] for name in ('nms', 'roi_align'))

    def keep(boxes, scores, iou_threshold, offset):
        return torch.arange(max(1, len(boxes) // 2), device=boxes.device)

    stub = SimpleNamespace(nms=keep, roi_align_forward=lambda *a, **k: None, roi_align_backward=lambda *a, **k: None)
    index_types = mock.patch.object(instance_data, 'IndexType', instance_data.IndexType | torch.Tensor)
    with mock.patch.object(nms, 'ext_module', stub), mock.patch.object(roi_align, 'ext_module', stub), index_types:
        yield
