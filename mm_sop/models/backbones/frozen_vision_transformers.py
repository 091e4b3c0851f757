"""MMPretrain's vision transformers with parts that reliably stay frozen."""

from mmpretrain.models import MoCoV3ViT, VisionTransformer
from mmpretrain.registry import MODELS


@MODELS.register_module()
class FreezableVisionTransformer(VisionTransformer):
    """MMPretrain's ``VisionTransformer`` whose frozen parts stay in evaluation mode.

    The parent's constructor sets this mode, but its next ``train()`` switches the dropout of frozen parts on again.
    """

    def train(self, mode: bool = True) -> 'FreezableVisionTransformer':
        """Set the mode of all modules but frozen ones."""
        super().train(mode)
        if self.frozen_stages > 0:
            self._freeze_stages()
        return self


@MODELS.register_module()
class FixedPositionViT(MoCoV3ViT):
    """MMPretrain's ``MoCoV3ViT`` whose fixed position embedding is excluded from training from the start.

    The parent excludes it in ``init_weights()``, which MMEngine's Runner calls after DistributedDataParallel has
    wrapped the model. With several processes the second iteration then fails because the embedding has no gradient.
    The position embedding of a pretrained checkpoint is trained, as in the parent.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not (isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained'):
            self.pos_embed.requires_grad = False
