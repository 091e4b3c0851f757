"""Single measurements of the check on a GPU: host waits, one process with NCCL, and the memory of a detector."""

import argparse
import copy
import json
import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from harness import ROOT
from mmengine.config import Config
from train_speed import Trainer, make_noise, prepare

from mm_sop.engine.launch import set_data_root
from mm_sop.utils.files import write_atomically


def make_trainer(config: str, folder: str, batch_size: int, **options) -> Trainer:
    args = argparse.Namespace(config=config, cfg_options={}, batch_size=batch_size, amp=False)
    cfg = prepare(args)
    noise = Path(folder, 'noise')
    make_noise(noise, batch_size)
    set_data_root(cfg, str(noise))
    return Trainer(cfg, folder, options, synthetic=True)


def count_waits(config: str, batch_size: int) -> dict:
    """Host waits of a step as PyTorch's debug mode reports them, and the kernels of a profile."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, folder, batch_size)
        trainer.step(3)
        torch.cuda.set_sync_debug_mode('warn')
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            trainer.step()
        torch.cuda.set_sync_debug_mode('default')
        places = Counter(f'{each.filename}:{each.lineno}' for each in caught if 'synchronizing' in str(each.message))
        with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
            trainer.step()
            torch.cuda.synchronize()
    kernels = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)
    shown = {each.key[:80]: each.self_device_time_total / 1000 for each in kernels[:15]}
    return dict(waits=dict(places), milliseconds_on_the_device=shown)


def train_in_a_group(dtype: str, backend: str = 'nccl') -> dict:
    """Loss after some steps of a small run in a process group of one."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='29511', RANK='0', WORLD_SIZE='1', LOCAL_RANK='0')
    torch.distributed.init_process_group(backend)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            str(ROOT / 'configs/sop/quickstart.py'), folder, 32, launcher='pytorch', **{'optim_wrapper.dtype': dtype}
        )
        trainer.step(10)
        losses = trainer.runner.model.train_step(next(trainer.batches), trainer.runner.optim_wrapper)
        loss, wrapper = float(losses['loss']), type(trainer.runner.model).__name__
    torch.distributed.destroy_process_group()
    if not torch.tensor(loss).isfinite():
        raise RuntimeError(f'the loss is {loss}')
    return dict(loss=loss, wrapper=wrapper, backend=backend, dtype=dtype)


def measure_detector(config: str, size: int) -> dict:
    """Peak memory of training steps of a detector with one and two images, in bfloat16."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    cfg = copy.deepcopy(Config.fromfile(config))
    model = MODELS.build(cfg.model).cuda().train()
    peaks = {}
    for number in (1, 2):
        batch = demo_mm_inputs(
            number, [(3, size, size)] * number, num_classes=80, num_items=[8] * number, with_mask=True
        )
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast('cuda', torch.bfloat16):
            losses = model(**model.data_preprocessor(batch, True), mode='loss')
        model.parse_losses(losses)[0].backward()
        peaks[f'{number} images'] = torch.cuda.max_memory_allocated() / 2**20
    return dict(config=config, size=size, mib=peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['waits', 'nccl', 'detector'])
    parser.add_argument('subject', help='config, or the type of numbers for nccl')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--size', type=int, default=1024)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/benchmarks/gpu_probe.json')
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, 'gpu_probe: PyTorch finds no CUDA device here\n')
    if args.what == 'waits':
        result = count_waits(args.subject, args.batch_size)
    elif args.what == 'nccl':
        result = train_in_a_group(args.subject)
    else:
        result = measure_detector(args.subject, args.size)
    write_atomically(args.out, json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
