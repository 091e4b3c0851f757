"""BYOL, and CO-BYOL with a local head."""

from mmpretrain.registry import MODELS

from mm_sop.models.selfsup.siamese import SiameseTeacher


@MODELS.register_module(name=['SiameseBYOL', 'COBYOL'])
class SiameseBYOL(SiameseTeacher):
    """`Bootstrap Your Own Latent <https://arxiv.org/abs/2006.07733>`_; CO-BYOL with a :class:`LocalGlobalHead`.

    On the same weights the loss is that of MMPretrain's BYOL, whose target network moves inside of ``loss()`` and
    therefore several times in a step that accumulates gradients; hence another name. Both names are one class:
    ``COBYOL`` without a local head, or with weight 0, is BYOL.

    Args:
        **kwargs: Arguments of :class:`SiameseTeacher`; the head is a :class:`BYOLHead` with a predictor.
    """
