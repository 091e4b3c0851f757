"""DINO, and CO-DINO with a local head."""

from mmpretrain.registry import MODELS

from mm_sop.models.selfsup.siamese import SiameseTeacher


@MODELS.register_module(name=['DINO', 'CODINO'])
class DINO(SiameseTeacher):
    """`Self-distillation with no labels <https://arxiv.org/abs/2104.14294>`_; CO-DINO with a :class:`LocalGlobalHead`.

    Two global views come first, then any number of local crops for the student alone (multi-crop). All views of one
    size pass through a network together, and all vectors through the projector, as in the authors' code. A local head
    compares cells of the global views only, and has its own prototypes and its own center of the targets.

    Training needs :class:`TeacherHook`, and usually :class:`TeacherTemperatureHook` and :class:`FreezePrototypesHook`.

    Args:
        **kwargs: Arguments of :class:`SiameseTeacher`; the neck is a :class:`DINONeck`, the head a
            :class:`DINOHead`.

    Raises:
        ValueError: Neck and head have different numbers of prototypes.
    """

    joint_views = True

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        expected = len(self.head.make_targets.center)
        projectors = [self.neck] if self.local_head is None else [self.neck, self.local_head.projector or self.neck]
        for projector in projectors:
            if len(projector.prototypes.weight) != expected:
                raise ValueError(
                    f'num_prototypes of neck, head and local projector must be equal, got {expected} in the head and '
                    f'{len(projector.prototypes.weight)} in a projector'
                )

    def set_teacher_temperature(self, temperature: float) -> None:
        """Set the temperature of the teacher's targets for vectors and for cells."""
        for head in (self.head, self.local_head):
            if head is not None:
                head.make_targets.temperature = temperature
