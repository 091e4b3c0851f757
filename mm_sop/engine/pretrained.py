"""Starting detectors, segmentors and classifiers from a pretrained backbone."""

import math
from collections.abc import Sequence

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mm_sop.engine.weights import (
    BACKBONE_PREFIXES,
    WeightsError,
    find_prefix,
    load_complete,
    read_state_dict,
    strip_prefix,
)


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """Initialises the backbone of a model from a checkpoint, completely or not at all.

    One line in a config, for any model with a ``backbone`` of MMPretrain or MMDetection:
    ``model = dict(init_cfg=dict(type='PretrainedBackbone', checkpoint='work_dirs/vits/iter_100.pth'))``. The last stage
    of a ResNet may be the ``shared_head`` of a C4 detector: it is initialised from the same checkpoint. The position
    embedding of a transformer is resized to its ``img_size``, once.

    Args:
        checkpoint: Weights of MM-SOP, MMPretrain or of the backbone alone; None raises an error that says what to do.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both.
        prefix: Beginning of the backbone's names in the checkpoint. Defaults to None, found out.
        ignored: Beginnings of names that only the model or only the checkpoint has, such as ``'norm.'`` for a norm that
            the detector adds.
        grid: Rows and columns of patches in the pictures of pretraining, of which the checkpoint tells only the
            product. Defaults to None: a square, or else the grid of this backbone.

    Raises:
        ValueError: ``network`` is neither.
        WeightsError: There is no checkpoint, or it does not hold exactly the backbone; the message has a table of the
            names that are missing, unexpected or of another shape. Or its position embedding has another grid.
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
        self.checkpoint = checkpoint
        self.network = network
        self.prefix = prefix
        # The teacher's copy of a masked transformer lacks it, and nothing is masked downstream.
        self.ignored = ('mask_token', *ignored)
        self.grid = grid

    def __call__(self, model: nn.Module) -> None:
        """Load the weights and keep later initialisation away from them.

        Args:
            model: A module with ``backbone``, or a backbone itself.
        """
        parts = backbone_parts(model)
        state = self._read({name for part in parts for name in part.state_dict()})
        for index, part in enumerate(parts):
            others = {name for other in parts[:index] + parts[index + 1 :] for name in other.state_dict()}
            own = {name: value for name, value in state.items() if name not in others}
            self._load(part, own)
        print_log(f'Backbone initialised from {self.checkpoint}, {len(state)} tensors', logger='current')

    def _read(self, names: set[str]) -> dict[str, Tensor]:
        state = read_state_dict(self.checkpoint)
        prefix = self.prefix
        if prefix is None:
            needed = sorted(name for name in names if not name.startswith(self.ignored))
            prefix = find_prefix(state, needed, BACKBONE_PREFIXES[self.network], str(self.checkpoint))
        return strip_prefix(state, prefix)

    def _load(self, part: nn.Module, state: dict[str, Tensor]) -> None:
        if isinstance(part, VisionTransformer) and 'pos_embed' in state:
            state['pos_embed'] = self._resize_positions(part, state['pos_embed'])
        elif hasattr(part, '_prepare_pos_embed'):
            part._prepare_pos_embed(state, '')
        load_complete(part, state, str(self.checkpoint), self.ignored)
        if hasattr(part, '_params_init_info'):
            update_init_info(part, init_info=f'PretrainedBackbone: {self.checkpoint}')
        # MMEngine initialises the children after their parent, unless they say that it is done.
        part._is_init = True

    def _resize_positions(self, part: nn.Module, embedding: Tensor) -> Tensor:
        count, own = embedding.shape[1] - part.num_extra_tokens, tuple(part.patch_embed.init_out_size)
        square = (math.isqrt(max(count, 0)),) * 2
        grids = [square, own] if self.grid is None else [tuple(self.grid)]
        grid = next((grid for grid in grids if math.prod(grid) == count), None)
        if grid is None:
            raise WeightsError(
                f'{self.checkpoint} has a position embedding for {count} patches, but init_cfg.grid={self.grid}: give '
                'the rows and columns of the pretraining, such as --cfg-options model.init_cfg.grid=[16,20]'
            )
        return resize_pos_embed(embedding, grid, own, part.interpolate_mode, part.num_extra_tokens)


def backbone_parts(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that a pretrained backbone fills: the backbone, and a C4 detector's shared head."""
    roi_head = getattr(model, 'roi_head', None)
    shared_head = getattr(roi_head, 'shared_head', None)
    return [getattr(model, 'backbone', model), *([] if shared_head is None else [shared_head])]
