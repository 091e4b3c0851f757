"""Vision transformer for large images."""

from collections.abc import Sequence

from mmdet.registry import MODELS as DETECTION_MODELS
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.models.backbones.masked_vision_transformer import MaskedVisionTransformer
from mm_sop.models.utils.attention import WindowAttention


@DETECTION_MODELS.register_module()
@MODELS.register_module()
class WindowedVisionTransformer(MaskedVisionTransformer):
    """Pretrained vision transformer as backbone of a detector or segmentor, of "Exploring Plain Vision Transformer
    Backbones for Object Detection" (ViTDet, arXiv 2203.16527).

    Most blocks attend within windows; a few, evenly spaced, attend globally and carry information between windows.
    Unlike in ViTDet the [CLS] token stays, as in pretraining: it attends to every window separately and takes the
    mean. Features equal those of the plain transformer where one window covers the map. The weights are those of
    :class:`MaskedVisionTransformer` without the mask embedding. :class:`PretrainedBackbone` resizes the position
    embedding to ``img_size`` once; for images of another size it is resized in every forward pass.

    Args:
        window_size: Side of a window in patches; None for global attention. Defaults to 14, the map of an image of
            224 pixels in patches of 16.
        global_indices: Blocks that attend globally. Defaults to None: the last one of each quarter.
        out_type: Defaults to ``'featmap'``, maps (B, D, h, w).
        **kwargs: Arguments of :class:`MaskedVisionTransformer`, such as ``frozen_stages``, the number of frozen blocks.

    Raises:
        ValueError: ``window_size`` or a global block is out of range.
    """

    accepts_mask = False

    def __init__(
        self,
        *args,
        window_size: int | None = 14,
        global_indices: Sequence[int] | None = None,
        out_type: str = 'featmap',
        **kwargs,
    ) -> None:
        super().__init__(*args, out_type=out_type, **kwargs)
        # Nothing is masked; DistributedDataParallel would wait for the gradient of the embedding.
        self.mask_token = None  # type: ignore[assignment]  # modules accept None for a parameter
        self.windows = None if window_size is None else WindowAttention(window_size)
        if self.windows is None:
            return
        depth = self.num_layers
        if global_indices is None:
            global_indices = [-(-quarter * depth // 4) - 1 for quarter in (1, 2, 3, 4)]
        if not all(0 <= index < depth for index in global_indices):
            raise ValueError(f'global_indices={tuple(global_indices)}: the transformer has blocks 0 ... {depth - 1}')
        for index in set(range(depth)) - set(global_indices):
            self.layers[index].attn.scaled_dot_product_attention = self.windows

    def _encode(
        self, tokens: Tensor, resolution: tuple[int, int], positions: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if self.windows is not None:
            self.windows.grid = resolution[0], resolution[1]
        return super()._encode(tokens, resolution, positions)
