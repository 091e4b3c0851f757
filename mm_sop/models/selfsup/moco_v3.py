"""MoCo v3, and CO-MoCoV3 with a local head."""

from mmpretrain.registry import MODELS

from mm_sop.models.selfsup.siamese import SiameseTeacher


@MODELS.register_module(name=['SiameseMoCoV3', 'COMoCoV3'])
class SiameseMoCoV3(SiameseTeacher):
    """`MoCo v3 <https://arxiv.org/abs/2104.02057>`_; CO-MoCoV3 with a :class:`LocalGlobalHead`.

    With the same weights the loss equals that of MMPretrain's MoCoV3. The name differs because MMPretrain updates the
    momentum encoder inside ``loss()``. Both names are one class: ``COMoCoV3`` without a local head, or with weight 0,
    is MoCo v3.

    Args:
        **kwargs: Arguments of :class:`SiameseTeacher`; the head is an :class:`InfoNCEHead` with a predictor.
    """
