"""Training steps of a config on a device that does not exist, to see what they would meet on a GPU."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn

from mm_sop.datasets.semantic_pairs import PairManifest, describe_data
from mm_sop.datasets.unlabeled import UnlabeledImages
from mm_sop.engine.launch import set_data_root
from mm_sop.engine.runner import PretrainRunner, separate_norms
from mm_sop.evaluation.retrieval.mining import write_manifest
from mm_sop.utils.fake_device import NAME, FakeDevice

# They need labeled data, write files or draw what training has written.
LEFT_OUT = ('KNNHook', 'OnlineEvaluationHook', 'RefreshPairsHook', 'ReportHook', 'PretrainCheckpointHook')

_run_numbers = count()


@dataclass
class RehearsedStep:
    """What one iteration did on the device, hooks included; the fields are those of :class:`FakeDevice`.

    Attributes:
        host_values: Names of logged tensors that are not on the device.
    """

    operations: dict[str, int]
    waits: dict[str, int]
    uploads: dict[str, int]
    float64: dict[str, int]
    flops: int
    peak_memory: int
    host_values: list[str]


def rehearse(cfg: Config, iterations: int = 2, batch_size: int | None = None) -> list[RehearsedStep]:
    """Train a self-supervised config for some iterations on a device that does not exist, on images of noise.

    Everything is real but the results: views and masks, the training loop with its hooks, mixed precision, optimizer
    and teacher. Left out are initial weights, compilation, and hooks that evaluate or save. Call it in a process of its
    own, see :class:`FakeDevice`.

    Args:
        cfg: The config, which is not changed.
        iterations: Number of iterations, fewer than the interval of the log.
        batch_size: Images of this process; by default those of the config.

    Returns:
        What each of the iterations did. The first may wait where later ones do not, to read a counter for example.
    """
    device = FakeDevice()
    recorder = _Recorder(device, iterations)
    with tempfile.TemporaryDirectory() as folder:
        # Some settings depend on whether there is an accelerator.
        with mock.patch.object(Config, 'pretty_text', ''), mock.patch('mmengine.device.utils.DEVICE', NAME):
            runner = _RehearsalRunner.from_cfg(_on_noise(cfg, Path(folder), iterations, batch_size))
        device.move(runner.model)
        runner.register_hook(recorder, 'LOWEST')
        # Before all others in an iteration, and after all others: the priority is the same for both ends of one hook.
        runner.hooks.insert(0, _Start(device))
        # Formatting the config takes longer than the training.
        with device, mock.patch.object(Config, 'pretty_text', ''), suppress(_Finished):
            runner.train()
    return recorder.steps


@contextmanager
def without_memory() -> Iterator[None]:
    """Build models of any size within the block, on the meta device, where their parameters take no memory."""
    # Transformers read numbers of a linspace.
    with torch.device('meta'), mock.patch('torch.linspace', partial(torch.linspace, device='cpu')):
        yield


class _Finished(Exception):  # noqa: N818  # no error
    """Ends a rehearsal before the log is written."""


class _RehearsalRunner(PretrainRunner):
    def build_model(self, model: Any) -> nn.Module:
        with without_memory():
            return super().build_model(model)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        return separate_norms(model)

    def _init_model_weights(self) -> None:
        """Do nothing: tensors have no content."""


class _Start(Hook):
    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self.device.reset()


class _Recorder(Hook):
    """Records each iteration when all hooks have run, and ends the training."""

    def __init__(self, device: FakeDevice, iterations: int) -> None:
        self.device = device
        self.iterations = iterations
        self.steps: list[RehearsedStep] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        device = self.device
        tensors = {name: value for name, value in (outputs or {}).items() if isinstance(value, Tensor)}
        host_values = [name for name, value in tensors.items() if value.device != device.device]
        self.steps.append(
            RehearsedStep(
                operations=dict(device.operations),
                waits=dict(device.waits),
                uploads=dict(device.uploads),
                float64=dict(device.float64),
                flops=device.flops,
                peak_memory=device.peak_memory,
                host_values=host_values,
            )
        )
        if len(self.steps) == self.iterations:
            raise _Finished


def _on_noise(cfg: Config, folder: Path, iterations: int, batch_size: int | None) -> Config:
    """A config that trains on images of noise and writes into the folder only."""
    cfg = copy.deepcopy(cfg)
    loader = cfg.train_dataloader
    loader.update(batch_size=batch_size or loader.batch_size, num_workers=0, pin_memory=False)
    images = folder / 'images'
    # One batch more than needed: the log is written at the end of an epoch.
    _write_noise(images, (iterations + 1) * loader.batch_size)
    _train_on_files(cfg, images)
    for split in ('val', 'test'):
        cfg.update({f'{split}_{name}': None for name in ('dataloader', 'cfg', 'evaluator')})
    cfg.default_hooks = {name: hook for name, hook in cfg.default_hooks.items() if hook['type'] not in LEFT_OUT}
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] not in LEFT_OUT]
    cfg.update(work_dir=str(folder), experiment_name=f'rehearsal_{next(_run_numbers)}', log_level='WARNING')
    cfg.update(launcher='none', load_from=None, resume=False, compile_blocks=None, visualizer=None, vis_backends=None)
    return cfg


def _train_on_files(cfg: Config, images: Path) -> None:
    """Replace the data by image files; datasets of arrays do not load any, and pairs need a manifest."""
    outer = cfg.train_dataloader.dataset
    while 'pipeline' not in outer:
        outer = outer.dataset
    if outer.pipeline[0]['type'] == 'FastMultiView':
        outer.pipeline = [dict(type='LoadImage'), *outer.pipeline]
    set_data_root(cfg, str(images))
    if outer.type == 'SemanticPairDataset':
        outer.dataset.pop('pipeline', None)
        dataset = UnlabeledImages(images)
        pairs = np.arange(len(dataset) // 2 * 2).reshape(-1, 2)
        outer.manifest = str(images / 'pairs.json')
        cosines = np.full(len(pairs), 0.98, np.float32)
        write_manifest(PairManifest(pairs, cosines, describe_data(dataset)), outer.manifest)


def _write_noise(folder: Path, number: int) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir()
    pixels = generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / '0.png', compress_level=0)
    for index in range(1, number):
        (folder / f'{index}.png').symlink_to(folder / '0.png')
