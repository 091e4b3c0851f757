"""Vision transformer for masked image modeling."""

from typing import Any

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mm_sop.models.backbones.frozen_vision_transformers import FreezableVisionTransformer
from mm_sop.models.utils.attention import UnboundAttention, attend
from mm_sop.models.utils.conv_stem import ConvStem
from mm_sop.models.utils.cpu_layers import TrainingHiddenLayer, TrainingLinear


class SelectingEncoderLayer(TransformerEncoderLayer):
    """Block that computes the output of its attention and its MLP for the tokens that are asked for alone."""

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), or (n, D) at some positions of all images' tokens, (n,)."""
        if positions is None:
            return super().forward(tokens)
        if getattr(self.ffn.dropout_layer, 'drop_prob', 0) and self.training:
            # Stochastic depth drops the branch for all tokens of an image.
            return super().forward(tokens).flatten(0, 1)[positions]
        selected = tokens.flatten(0, 1)[positions] + self.attn(self.ln1(tokens), positions)
        return self.ffn(self.ln2(selected), identity=selected)


@MODELS.register_module()
class MaskedVisionTransformer(FreezableVisionTransformer):
    """MMPretrain's vision transformer with a mask embedding, as iBOT and SOP pretrain it.

    Differences from the parent: masked patches are replaced by a learned vector before the position embedding is added;
    weights are initialized as in DINO and iBOT (truncated normal of standard deviation 0.02 for linear layers, [CLS]
    and position embeddings, zeros for the mask embedding, PyTorch's default for the patch convolution); the position
    embedding is resized by DINO's scale factor. All tokens are returned by default. Any crop size works.

    Args:
        interpolate_offset: Added to the target side when the position embedding is resized, as in DINO; 0 resizes to
            the exact size.
        stem: ``'patch'``, one convolution with stride ``patch_size``, or ``'conv'``, a stack of 3x3 convolutions.
        **kwargs: Arguments of MMPretrain's ``VisionTransformer``. Note that its arch for ViT-S is ``'deit-small'``.
            ``frozen_stages`` freezes this many blocks and everything before them: stem, embeddings and mask token.

    Raises:
        ValueError: ``stem`` is unknown, the [CLS] token is missing, or more stages are frozen than there are blocks.
    """

    accepts_mask = True
    """Whether :meth:`forward` can hide patches."""
    mask_token: nn.Parameter
    patch_embed: Any

    def __init__(
        self, *args, interpolate_offset: float = 0.1, stem: str = 'patch', out_type: str = 'raw', **kwargs
    ) -> None:
        super().__init__(*args, out_type=out_type, **kwargs)
        if self.cls_token is None:
            raise ValueError('MaskedVisionTransformer needs its [CLS] token: leave with_cls_token=True')
        self.interpolate_offset = interpolate_offset
        for layer in self.layers:
            layer.attn.__class__ = UnboundAttention
            layer.attn.scaled_dot_product_attention = attend
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.__class__ = TrainingLinear
            if isinstance(layer.ffn, FFN):
                layer.ffn.layers[0].__class__ = TrainingHiddenLayer
        self.layers[-1].__class__ = SelectingEncoderLayer
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        if stem == 'conv':
            projection = self.patch_embed.projection
            self.patch_embed = ConvStem(
                projection.in_channels, self.embed_dims, projection.stride[0], self.patch_resolution
            )
        elif stem != 'patch':
            raise ValueError(f"stem must be 'patch' or 'conv', got {stem!r}")
        # The parent froze before these parts existed.
        if self.frozen_stages > 0:
            self._freeze_stages()

    def _freeze_stages(self) -> None:
        if self.frozen_stages > self.num_layers:
            raise ValueError(f'frozen_stages={self.frozen_stages}: the transformer has {self.num_layers} blocks')
        super()._freeze_stages()
        self.pre_norm.eval()
        if getattr(self, 'mask_token', None) is not None:
            self.mask_token.requires_grad = False

    def init_weights(self) -> None:
        """Initialize as DINO and iBOT do, unless a pretrained checkpoint is configured."""
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            super().init_weights()
            return
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)
        self._is_init = True

    @property
    def selects_tokens(self) -> bool:
        """Whether :meth:`forward` can return some of the last layer's tokens."""
        return self.out_type == 'raw' and list(self.out_indices) == [self.num_layers - 1]

    def forward(
        self, images: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            images: (B, C, H, W), H and W multiples of the patch size.
            mask: Patches to hide, bool, (B, h, w) or (B, h w).
            positions: Tokens to return, of all images in one row, int64, (n,), if :attr:`selects_tokens`; None for all.
                The last layers that treat tokens singly then see no others.

        Returns:
            Output of every layer in ``out_indices``; with ``out_type='raw'`` all tokens, (B, 1 + h w, D), or the
            selected ones, (n, D).
        """
        tokens, resolution = self.patch_embed(images)
        if mask is not None:
            if mask.flatten(1).shape != tokens.shape[:2]:
                raise ValueError(
                    f'masks of {tuple(mask.shape[1:])} patches do not fit {tokens.shape[1]} tokens: the grid of the '
                    'mask generator must be the crop size divided by the patch size'
                )
            tokens = torch.where(mask.flatten(1).unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = self.drop_after_pos(tokens + self._position_embedding(resolution))
        return self._encode(self.pre_norm(tokens), resolution, positions)

    def _encode(
        self, tokens: Tensor, resolution: tuple[int, int], positions: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        outputs = []
        if positions is not None:
            # Their number differs in every step: a compiled layer is not compiled again.
            torch._dynamo.maybe_mark_dynamic(positions, 0)
        for index, layer in enumerate(self.layers):
            is_last = index == self.num_layers - 1
            tokens = layer(tokens, positions) if is_last else layer(tokens)
            if is_last and self.final_norm:
                tokens = self.ln1(tokens)
            if index in self.out_indices:
                outputs.append(self._format_output(tokens, resolution))
        return tuple(outputs)

    def _position_embedding(self, resolution: tuple[int, int]) -> Tensor:
        if tuple(resolution) == tuple(self.patch_resolution):
            return self.pos_embed
        extra = self.pos_embed[:, : self.num_extra_tokens]
        grid = self.pos_embed[:, self.num_extra_tokens :].unflatten(1, tuple(self.patch_resolution))
        grid = grid.permute(0, 3, 1, 2).float()  # (1, h, w, D) -> (1, D, h, w)
        if self.interpolate_offset:
            sides = zip(resolution, self.patch_resolution, strict=True)
            size: dict[str, Any] = dict(scale_factor=tuple((new + self.interpolate_offset) / old for new, old in sides))
        else:
            size = dict(size=tuple(resolution))
        grid = interpolate(grid, mode=self.interpolate_mode, align_corners=False, **size)
        return torch.cat([extra, grid.flatten(2).transpose(1, 2).to(extra.dtype)], dim=1)
