"""BYOL, and CO-BYOL with a local head."""

from mmpretrain.registry import MODELS

from mm_sop.models.selfsup.siamese import SiameseTeacher


@MODELS.register_module(name=['SiameseBYOL', 'COBYOL'])
class SiameseBYOL(SiameseTeacher):
    """`Bootstrap Your Own Latent <https://arxiv.org/abs/2006.07733>`_; CO-BYOL with a :class:`LocalGlobalHead`.

    With the same weights the loss equals that of MMPretrain's BYOL. The name differs because MMPretrain updates the
    target network inside ``loss()`` and therefore several times in a step that accumulates gradients. Both names are
    one class: ``COBYOL`` without a local head, or with weight 0, is BYOL.

    Args:
        **kwargs: Arguments of :class:`SiameseTeacher`; the head is a :class:`BYOLHead` with a predictor.
    """
