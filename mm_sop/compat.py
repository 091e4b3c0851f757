"""Fixes for known faults of the stack below; each does nothing where its fault is absent."""

import functools
import logging
from importlib.metadata import PackageNotFoundError, version

import torch

_torchvision_library = None


def define_torchvision_operators() -> None:
    """Make ``import torchvision`` work where its compiled operators cannot load.

    The published torchvision wheels are CUDA builds. On a CPU-only torch their extension does not load and the import
    fails because the operator ``torchvision::nms`` has no schema. Declaring the schemas is enough: transforms, data
    sets and models work, and MMCV provides the operators themselves.
    """
    global _torchvision_library
    if torch.version.cuda is not None or getattr(torch.version, 'hip', None) or _torchvision_library is not None:
        return
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _torchvision_library = library


def silence_onedl() -> None:
    """Leave out the lines "Could not import OneDL" at the start of every program.

    MMPretrain and MMDetection look for data sets of the OneDL platform. They mean the lines for debugging, but name no
    logger, so that MMEngine prints them.
    """
    import mmengine.logging

    print_log = mmengine.logging.print_log

    @functools.wraps(print_log)
    def print_others(msg, logger=None, level=logging.INFO) -> None:
        if logger is not None or not str(msg).startswith('Could not import OneDL'):
            print_log(msg, logger, level)

    mmengine.logging.print_log = print_others


def limit_opencv_threads() -> None:
    """Keep OpenCV from starting a thread pool in every data-loading worker."""
    import cv2

    cv2.setNumThreads(0)


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


def keep_frozen_blocks_in_evaluation() -> None:
    """Keep frozen parts of MMPretrain's vision transformers in evaluation mode, as documented.

    Their constructor sets it, but the next ``train()`` switches dropout and statistics of frozen parts on again.
    """
    from mmpretrain.models import VisionTransformer

    if 'train' in vars(VisionTransformer):
        return

    def train(self, mode: bool = True) -> VisionTransformer:
        super(VisionTransformer, self).train(mode)
        if self.frozen_stages > 0:
            self._freeze_stages()
        return self

    VisionTransformer.train = train


def fix_positions_before_wrapping() -> None:
    """Exclude the fixed position embedding of MMPretrain's ``MoCoV3ViT`` from training at once.

    It does so in ``init_weights()``, which MMEngine's Runner calls after DistributedDataParallel has wrapped the model.
    With several processes the second iteration then fails because the embedding has no gradient.
    """
    from mmpretrain.models import MoCoV3ViT

    build = MoCoV3ViT.__init__

    @functools.wraps(build)
    def build_fixed(self, *args, **kwargs) -> None:
        build(self, *args, **kwargs)
        # Weights of a checkpoint are trained, as in `init_weights`.
        if not (isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained'):
            self.pos_embed.requires_grad = False

    MoCoV3ViT.__init__ = build_fixed


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
