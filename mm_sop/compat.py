"""Remedies for known faults of the libraries below; each does nothing where its fault is absent.

Importing MM-SOP makes only those changes without which something could not be imported or found: those of
:func:`define_torchvision_operators`, :func:`leave_out_multimodal_models` and :func:`announce_configs`. Others change
how the libraries or the process behave; the commands, ``launch`` and the runner make them, by :func:`apply`.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_torchvision_library: torch.library.Library | None = None


@functools.cache
def apply() -> None:
    """Register all components and apply the remedies that training and the commands need, once in a process.

    - Checkpoints are read without running code from them, whoever in MMEngine, MMPretrain or MMDetection reads them.
    - MMPretrain's self-supervised models can be evaluated in MMEngine's validation and test loops.
    - OpenCV starts no thread pool in data-loading workers.
    - MMPretrain and MMDetection do not print that the OneDL platform is absent.
    """
    import cv2

    import mm_sop.components  # noqa: F401
    from mm_sop.encoders import checkpoint_loader
    from mm_sop.models.selfsup.predict_mode import add_predict_mode

    checkpoint_loader.install()
    add_predict_mode()
    # A thread pool in every data-loading worker would compete for the same cores.
    cv2.setNumThreads(0)
    silence_onedl()


def define_torchvision_operators() -> None:
    """Make ``import torchvision`` work where its compiled operators cannot load.

    The published torchvision wheels are CUDA builds. On a CPU-only PyTorch their extension does not load, and the
    import fails because the operator ``torchvision::nms`` has no schema. Declaring the schemas is enough: transforms,
    datasets and models work, and MMCV provides the operators themselves.
    """
    global _torchvision_library
    if torch.version.cuda is not None or getattr(torch.version, 'hip', None) or _torchvision_library is not None:
        return
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _torchvision_library = library


def leave_out_multimodal_models() -> None:
    """Make ``import mmpretrain.models`` work beside Transformers 5.

    MMPretrain's multimodal models use parts of Transformers 4 and break the import of all models without them. Where
    Transformers is not installed, MMPretrain leaves them out.
    """
    try:
        major = int(version('transformers').split('.')[0])
    except PackageNotFoundError:
        return
    if major >= 5:
        from mmpretrain.utils import dependency

        dependency.WITH_MULTIMODAL = False


def announce_configs() -> None:
    """Let MMEngine find the configs, as in ``_base_ = 'mm_sop::sop/vitb.py'`` and ``mmengine.hub.get_config``.

    MMEngine knows a fixed list of packages. It marks what comes from another package with the package's scope, in which
    it then looks for modules; those of this package are in MMPretrain's and MMDetection's, which the configs name.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    if 'mm_sop' in MODULE2PACKAGE:
        return
    # The name of the module: by that of the distribution, `mm-sop`, an editable installation is not found.
    MODULE2PACKAGE['mm_sop'] = 'mm_sop'
    find = Config._get_cfg_path

    @functools.wraps(find)
    def find_without_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = find(cfg_path, filename)
        return path, None if scope == 'mm_sop' else scope

    Config._get_cfg_path = staticmethod(find_without_scope)


def silence_onedl() -> Callable:
    """Leave out the lines "Could not import OneDL" from now on.

    MMPretrain and MMDetection look for datasets of the OneDL platform when they are imported. They mean the lines for
    debugging, but name no logger, so that MMEngine prints them. Returns the replaced function.
    """
    import mmengine.logging

    print_log = mmengine.logging.print_log

    @functools.wraps(print_log)
    def print_others(msg: object, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or not str(msg).startswith('Could not import OneDL'):
            print_log(msg, logger, level)

    mmengine.logging.print_log = print_others
    return print_log


@contextmanager
def silenced_onedl() -> Iterator[None]:
    """Apply :func:`silence_onedl` within a block."""
    import mmengine.logging

    print_log = silence_onedl()
    try:
        yield
    finally:
        mmengine.logging.print_log = print_log
