"""Exports for MMPretrain and MMDetection."""

from pathlib import Path
from typing import Any, cast

from mmengine.config import Config
from mmengine.model import initialize
from mmpretrain.models import MoCoV3ViT, ResNet, VisionTransformer
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.encoders.encoder import Encoder
from mm_sop.export.target import Encode, Target, read_global_and_local, save_tensors
from mm_sop.models.backbones import FreezableVisionTransformer, MaskedVisionTransformer
from mm_sop.utils.files import write_atomically

# Options that matter only in pretraining.
_TRAINING_OPTIONS = (
    'init_cfg', 'drop_rate', 'drop_path_rate', 'frozen_stages', 'norm_eval', 'with_cp', 'stop_grad_conv1',
)  # fmt: skip


class MMPretrain(Target):
    """A classifier without a head, as a config and a checkpoint."""

    name = 'mmpretrain'
    weights = 'model.pth'

    def write(self, encoder: Encoder, folder: Path) -> None:
        backbone = _plain_backbone(encoder)
        is_resnet = isinstance(encoder.network, ResNet) and getattr(encoder.network, 'mlp', None) is None
        gives_map = is_resnet or backbone.get('out_type') == 'featmap'
        model = dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling') if gives_map else None,
            data_preprocessor=dict(_normalization(encoder), to_rgb=encoder.specification.channel_order == 'rgb'),
        )
        imports = ['mm_sop'] if _is_ours(backbone) else []
        _write_config(folder / 'config.py', imports, model=model, default_scope='mmpretrain')
        _save_prefixed(self.converted(encoder), folder / self.weights)

    def usage(self, encoder: Encoder, folder: Path) -> str:
        return (
            'from mmpretrain import get_model\n'
            f"model = get_model('{folder}/config.py', pretrained='{folder}/{self.weights}').eval()\n"
            'features = model.extract_feat(images)[-1]'
        )

    def load(self, folder: Path) -> Encode:
        from mmpretrain import get_model

        model = get_model(Config.fromfile(folder / 'config.py'), pretrained=str(folder / self.weights)).eval()
        return lambda images: read_global_and_local(model.backbone, images)


class MMDetection(Target):
    """A backbone with its weights, for the ``model`` of a detector's config."""

    name = 'mmdet'
    # Needs MMCV's compiled operators.
    package = 'mmdet.models'
    installation = 'bash tools/setup.sh test'
    weights = 'model.pth'

    def write(self, encoder: Encoder, folder: Path) -> None:
        backbone = _plain_backbone(encoder)
        if isinstance(encoder.network, VisionTransformer):
            backbone['out_type'] = 'featmap'
        else:
            backbone['out_indices'] = tuple(range(cast('Any', encoder.network).num_stages))
        imports = []
        if backbone['type'] != 'ResNet':
            imports = ['mm_sop' if _is_ours(backbone) else 'mmpretrain.models']
            backbone['type'] = f'mmpretrain.{backbone["type"]}'
        # MMEngine replaces this by the folder of the config.
        checkpoint = f'{{{{ fileDirname }}}}/{self.weights}'
        backbone['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')
        preprocessor = dict(_normalization(encoder), bgr_to_rgb=encoder.specification.channel_order == 'rgb')
        model = dict(backbone=dict(backbone, _delete_=True), data_preprocessor=preprocessor)
        _write_config(folder / 'backbone.py', imports, model=model)
        _save_prefixed(self.converted(encoder), folder / self.weights)

    def usage(self, encoder: Encoder, folder: Path) -> str:
        return (
            "config = mmengine.Config.fromfile('DETECTOR.py')\n"
            f"config.merge_from_dict(mmengine.Config.fromfile('{folder}/backbone.py').to_dict())\n"
            "config.model.neck.in_channels = [...]  # widths of the backbone's outputs"
        )

    def load(self, folder: Path) -> Encode:
        from mmdet.registry import MODELS as DETECTION_MODELS
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        settings = dict(Config.fromfile(folder / 'backbone.py').model.backbone)
        settings.pop('_delete_')
        backbone = DETECTION_MODELS.build(settings)
        initialize(backbone, settings['init_cfg'])
        backbone.eval()
        return lambda images: (None, [level for level in backbone(images) if level.ndim == 4][-1])


def _plain_backbone(encoder: Encoder) -> dict:
    """Return the backbone's config for fine-tuning, with MMPretrain's own class where it suffices."""
    config = encoder.specification.backbone or {}
    backbone = {key: value for key, value in config.items() if key not in _TRAINING_OPTIONS}
    if backbone.get('norm_cfg', {}).get('type') == 'SyncBN':
        backbone.pop('norm_cfg')
    if isinstance(encoder.network, VisionTransformer):
        backbone['out_type'] = 'cls_token' if encoder.network.with_cls_token else 'featmap'
        is_masked = type(encoder.network) is MaskedVisionTransformer
        # MMPretrain interpolates the position embedding differently.
        is_resized = encoder.specification.image_size != encoder.network.img_size[0]
        if is_masked and (is_resized or backbone.get('stem', 'patch') != 'patch'):
            # Without the mask embedding: DistributedDataParallel would wait for its gradient.
            backbone.update(type='WindowedVisionTransformer', window_size=None)
        elif is_masked or isinstance(encoder.network, MoCoV3ViT) or type(encoder.network) is FreezableVisionTransformer:
            backbone = {key: value for key, value in backbone.items() if key not in ('stem', 'interpolate_offset')}
            backbone['type'] = 'VisionTransformer'
    return backbone


def _is_ours(backbone: dict) -> bool:
    return MODELS.get(backbone['type']).__module__.startswith('mm_sop.')


def _normalization(encoder: Encoder) -> dict:
    return dict(mean=list(encoder.specification.mean), std=list(encoder.specification.std))


def _write_config(path: Path, imports: list[str], **values) -> None:
    if imports:
        values['custom_imports'] = dict(imports=imports)
    write_atomically(path, Config(values).pretty_text)


def _save_prefixed(state: dict[str, Tensor], path: Path) -> None:
    save_tensors(dict(state_dict={f'backbone.{name}': value for name, value in state.items()}), path)
