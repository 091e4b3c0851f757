"""Starting detectors, segmentors and classifiers from a pretrained backbone."""

import math
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mm_sop.encoders.checkpoint import (
    BACKBONE_PREFIXES,
    MASK_TOKEN,
    WeightsError,
    find_prefix,
    load_complete,
    read_state_dict,
    strip_prefix,
)


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """Initializes the backbone of a model from a checkpoint, completely or not at all.

    One line in a config, for any model with a ``backbone`` of MMPretrain or MMDetection:
    ``model = dict(init_cfg=dict(type='PretrainedBackbone', checkpoint='work_dirs/vits/iter_100.pth'))``. The last stage
    of a ResNet may be the ``shared_head`` of a C4 detector: it is initialized from the same checkpoint. The position
    embedding of a transformer is resized to its ``img_size``, once.

    Args:
        checkpoint: Weights of MM-SOP, MMPretrain or of the backbone alone; None raises an error that says what to do.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both.
        prefix: State-dict key prefix of the backbone. Detected if None.
        ignored: Key prefixes that only the model or only the checkpoint has, such as ``'norm.'`` for a norm that the
            detector adds.
        grid: Rows and columns of patches in the images of pretraining, of which the checkpoint tells only the product.
            Defaults to None: a square, or else the grid of this backbone.

    Raises:
        ValueError: ``network`` is neither.
        WeightsError: There is no checkpoint, or it does not hold exactly the backbone; the message has a table of the
            keys that are missing, unexpected or of another shape. Or its position embedding has another grid.
    """

    def __init__(
        self,
        checkpoint: str | None,
        network: str = 'teacher',
        prefix: str | None = None,
        ignored: Sequence[str] = (),
        grid: tuple[int, int] | None = None,
    ) -> None:
        if network not in BACKBONE_PREFIXES:
            raise ValueError(f'PretrainedBackbone(network={network!r}): expected one of {", ".join(BACKBONE_PREFIXES)}')
        if checkpoint is None:
            raise WeightsError(
                'the config names no pretrained backbone: add --pretrained CHECKPOINT, or --pretrained none to train '
                'from scratch'
            )
        self.checkpoint, self.network, self.prefix, self.grid = checkpoint, network, prefix, grid
        self.ignored = (MASK_TOKEN, *ignored)

    def __call__(self, model: nn.Module) -> None:
        """Load the weights into a module with ``backbone``, or a backbone itself, and mark it as initialized."""
        # The last stage of a ResNet is the shared head of a C4 detector.
        shared_head = getattr(getattr(model, 'roi_head', None), 'shared_head', None)
        parts = [getattr(model, 'backbone', model), *([] if shared_head is None else [shared_head])]
        state, prefix = read_state_dict(self.checkpoint), self.prefix
        if prefix is None:
            names = {name for part in parts for name in part.state_dict() if not name.startswith(self.ignored)}
            prefix = find_prefix(state, sorted(names), BACKBONE_PREFIXES[self.network], str(self.checkpoint))
        state = strip_prefix(state, prefix)
        for part in parts:
            others = {name for other in parts if other is not part for name in other.state_dict()}
            self._load(part, {name: value for name, value in state.items() if name not in others})
        print_log(f'Backbone initialized from {self.checkpoint}, {len(state)} tensors', logger='current')

    def _load(self, part: Any, state: dict[str, Tensor]) -> None:
        if isinstance(part, VisionTransformer) and 'pos_embed' in state:
            state['pos_embed'] = self._resize_positions(part, state['pos_embed'])
        elif hasattr(part, '_prepare_pos_embed'):
            # MMPretrain's other transformers resize it themselves, in no public method.
            part._prepare_pos_embed(state, '')
        load_complete(part, state, str(self.checkpoint), self.ignored)
        if hasattr(part, '_params_init_info'):
            update_init_info(part, init_info=f'PretrainedBackbone: {self.checkpoint}')
        # MMEngine initializes the children after their parent, unless they say that it is done.
        part.is_init = True

    def _resize_positions(self, part: VisionTransformer, embedding: Tensor) -> Tensor:
        count, new_grid = embedding.shape[1] - part.num_extra_tokens, tuple(part.patch_embed.init_out_size)
        square = (math.isqrt(max(count, 0)),) * 2
        grids = [square, new_grid] if self.grid is None else [tuple(self.grid)]
        grid = next((grid for grid in grids if math.prod(grid) == count), None)
        if grid is None:
            raise WeightsError(
                f'{self.checkpoint} has a position embedding for {count} patches, but init_cfg.grid={self.grid}: give '
                'the rows and columns of the pretraining, such as --cfg-options model.init_cfg.grid=[16,20]'
            )
        return resize_pos_embed(embedding, grid, new_grid, part.interpolate_mode, part.num_extra_tokens)
