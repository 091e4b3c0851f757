"""Exports for model zoos with fixed architectures: timm, torchvision, Transformers."""

import json
from pathlib import Path

import torch
from mmpretrain.models import ResNet, VisionTransformer
from torch import Tensor, nn

from mm_sop.encoders.encoder import Encoder
from mm_sop.export.target import Encode, Target, read_global_and_local, save_safetensors, save_tensors
from mm_sop.models.utils.tokens import to_map
from mm_sop.utils.files import write_atomically


class Timm(Target):
    """A folder for ``timm.create_model('local-dir:...')``."""

    name = 'timm'
    package = 'timm'

    def write(self, encoder: Encoder, folder: Path) -> None:
        specification, transform = encoder.specification, encoder.transform
        assert transform.resize_edge is not None  # after its initialization
        pretrained = dict(
            input_size=(3, specification.image_size, specification.image_size),
            mean=[value / 255 for value in specification.mean],
            std=[value / 255 for value in specification.std],
            interpolation='bicubic',
            crop_pct=transform.crop_size / transform.resize_edge,
            num_classes=0,
            classifier='head' if isinstance(encoder.network, VisionTransformer) else 'fc',
        )
        config = dict(self._architecture(encoder.network), num_classes=0, pretrained_cfg=pretrained)
        write_atomically(folder / 'config.json', json.dumps(config, indent=1))
        save_safetensors(self.converted(encoder), folder / self.weights)

    def usage(self, encoder: Encoder, folder: Path) -> str:
        return (
            'import timm\n'
            f"model = timm.create_model('local-dir:{folder}', pretrained=True).eval()\n"
            'features = model(images)'
        )

    def load(self, folder: Path) -> Encode:
        import timm

        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        return lambda images: read_global_and_local(model, images)

    @staticmethod
    def _architecture(network: nn.Module) -> dict:
        if isinstance(network, ResNet):
            return dict(architecture=f'resnet{network.depth}')
        shape = _vit_shape(network)
        arguments = dict(
            img_size=shape['image_size'],
            patch_size=shape['patch_size'],
            embed_dim=shape['width'],
            depth=shape['depth'],
            num_heads=shape['num_heads'],
            mlp_ratio=shape['hidden'] / shape['width'],
            qkv_bias=shape['qkv_bias'],
            init_values=1.0 if shape['has_scale'] else None,
        )
        return dict(architecture='vit_base_patch16_224', model_args=arguments)


class Torchvision(Target):
    """Weights for torchvision's ``VisionTransformer`` or ``resnet*``."""

    name = 'torchvision'
    package = 'torchvision'
    weights = 'model.pth'

    def write(self, encoder: Encoder, folder: Path) -> None:
        write_atomically(folder / 'architecture.json', json.dumps(self._architecture(encoder.network), indent=1))
        save_tensors(self.converted(encoder), folder / self.weights)

    def usage(self, encoder: Encoder, folder: Path) -> str:
        architecture = self._architecture(encoder.network)
        arguments = ', '.join(f'{key}={value}' for key, value in architecture['arguments'].items())
        return (
            f'model = torchvision.models.{architecture["constructor"]}({arguments})\n'
            f'model.{architecture["classifier"]} = torch.nn.Identity()\n'
            f"model.load_state_dict(torch.load('{folder}/{self.weights}', weights_only=True))"
        )

    def load(self, folder: Path) -> Encode:
        from torchvision import models

        architecture = json.loads((folder / 'architecture.json').read_text())
        model = getattr(models, architecture['constructor'])(**architecture['arguments'])
        setattr(model, architecture['classifier'], nn.Identity())
        model.load_state_dict(torch.load(folder / self.weights, weights_only=True))
        model.eval()
        return lambda images: read_global_and_local(model, images)

    @staticmethod
    def _architecture(network: nn.Module) -> dict:
        if isinstance(network, ResNet):
            return dict(constructor=f'resnet{network.depth}', arguments={}, classifier='fc')
        shape = _vit_shape(network)
        arguments = dict(
            image_size=shape['image_size'],
            patch_size=shape['patch_size'],
            num_layers=shape['depth'],
            num_heads=shape['num_heads'],
            hidden_dim=shape['width'],
            mlp_dim=shape['hidden'],
        )
        return dict(constructor='VisionTransformer', arguments=arguments, classifier='heads')


class HuggingFace(Target):
    """A folder for ``AutoModel.from_pretrained``, as the Hugging Face hub expects it."""

    name = 'huggingface'
    package = 'transformers'

    def format(self, network: nn.Module) -> str:
        if isinstance(network, ResNet):
            return 'huggingface_resnet'
        return 'huggingface_dinov2' if _vit_shape(network)['has_scale'] else 'huggingface_vit'

    def write(self, encoder: Encoder, folder: Path) -> None:
        config = self._architecture(encoder.network)
        write_atomically(folder / 'config.json', json.dumps(config, indent=1))
        write_atomically(folder / 'preprocessor_config.json', json.dumps(self._processor(encoder), indent=1))
        save_safetensors(self.converted(encoder), folder / self.weights)

    def usage(self, encoder: Encoder, folder: Path) -> str:
        arguments = ', add_pooling_layer=False' if self.format(encoder.network) == 'huggingface_vit' else ''
        return (
            f"model = transformers.AutoModel.from_pretrained('{folder}'{arguments})\n"
            f"processor = transformers.AutoImageProcessor.from_pretrained('{folder}')\n"
            "features = model(**processor(image, return_tensors='pt')).last_hidden_state"
        )

    def load(self, folder: Path) -> Encode:
        from transformers import AutoModel

        is_vit = json.loads((folder / 'config.json').read_text())['model_type'] == 'vit'
        model = AutoModel.from_pretrained(folder, **(dict(add_pooling_layer=False) if is_vit else {})).eval()

        def encode(images: Tensor) -> tuple[Tensor, Tensor]:
            output = model(images).last_hidden_state
            if output.ndim == 4:
                return output.mean((2, 3)), output
            return output[:, 0], to_map(output[:, 1:], images.shape[-2:])

        return encode

    def _architecture(self, network: nn.Module) -> dict:
        kind = self.format(network).removeprefix('huggingface_')
        name = dict(vit='ViTModel', dinov2='Dinov2Model', resnet='ResNetModel')[kind]
        if isinstance(network, ResNet):
            arguments = dict(
                embedding_size=network.conv1.out_channels,
                hidden_sizes=[getattr(network, layer)[-1].out_channels for layer in network.res_layers],
                depths=list(network.stage_blocks),
                layer_type='bottleneck' if hasattr(network.layer1[0], 'conv3') else 'basic',
                downsample_in_bottleneck=network.style == 'caffe',
            )
        else:
            arguments = _huggingface_vit(network)
        return dict(architectures=[name], model_type=kind, torch_dtype='float32', **arguments)

    @staticmethod
    def _processor(encoder: Encoder) -> dict:
        crop = encoder.transform.crop_size
        return dict(
            image_processor_type='BitImageProcessor',
            do_convert_rgb=True,
            do_resize=True,
            size=dict(shortest_edge=encoder.transform.resize_edge),
            resample=3,
            do_center_crop=True,
            crop_size=dict(height=crop, width=crop),
            do_rescale=True,
            rescale_factor=1 / 255,
            do_normalize=True,
            image_mean=[value / 255 for value in encoder.specification.mean],
            image_std=[value / 255 for value in encoder.specification.std],
        )


def _vit_shape(network: VisionTransformer) -> dict:
    projection, block = network.patch_embed.projection, network.layers[0]
    return dict(
        image_size=network.img_size[0],
        patch_size=projection.kernel_size[0],
        width=network.embed_dims,
        depth=network.num_layers,
        num_heads=network.arch_settings['num_heads'],
        hidden=network.arch_settings['feedforward_channels'],
        qkv_bias=block.attn.qkv.bias is not None,
        has_scale=not isinstance(block.attn.gamma1, nn.Identity),
        has_swiglu=hasattr(block.ffn, 'w12'),
        eps=block.ln1.eps,
    )


def _huggingface_vit(network: VisionTransformer) -> dict:
    shape = _vit_shape(network)
    config = dict(
        hidden_size=shape['width'],
        num_hidden_layers=shape['depth'],
        num_attention_heads=shape['num_heads'],
        image_size=shape['image_size'],
        patch_size=shape['patch_size'],
        qkv_bias=shape['qkv_bias'],
        layer_norm_eps=shape['eps'],
    )
    if not shape['has_scale']:
        return dict(config, intermediate_size=shape['hidden'])
    ratio = shape['hidden'] // shape['width']
    return dict(config, mlp_ratio=ratio, use_swiglu_ffn=shape['has_swiglu'], use_mask_token=False)
