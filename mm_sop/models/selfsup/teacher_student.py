"""Base of algorithms with a moving-average teacher."""

import copy
from collections.abc import Sequence

import torch
from mmcv.cnn.bricks import DropPath
from mmpretrain.models import BaseSelfSupervisor
from torch import Tensor, nn

from mm_sop.functional import update_ema
from mm_sop.models.utils.tokens import split_features, to_map
from mm_sop.utils.distributed import own_shards


def remove_mask_token(backbone: nn.Module) -> None:
    """Remove a mask embedding that no forward pass uses: it would have no gradient."""
    if hasattr(backbone, 'mask_token'):
        backbone.mask_token = None  # type: ignore[assignment]  # modules accept None for a parameter


class TeacherStudent(BaseSelfSupervisor):
    """A student that is trained, and a teacher that follows it as a moving average.

    The teacher is a copy of :attr:`student` without gradients, dropout and stochastic depth. Its keys in the state dict
    are those of the student's modules with the prefix ``teacher.``. A hook calls :meth:`update_teacher` after every
    step of the optimizer, so that iterations that only accumulate gradients do not change the teacher.

    Args:
        teacher_buffers: How to update the teacher's buffers, such as BatchNorm statistics: ``'keep'`` (the teacher
            collects its own), ``'copy'`` the student's, or ``'average'`` them like parameters.
        **kwargs: Arguments of :class:`mmpretrain.models.BaseSelfSupervisor`.

    Raises:
        ValueError: ``teacher_buffers`` is unknown.
    """

    has_teacher = True
    """Whether :meth:`extract_feat` takes the network."""

    student_modules: tuple[str, ...] = ('backbone', 'neck')
    """Attributes whose modules the teacher copies; None among them are left out."""

    def __init__(self, backbone: dict, neck: dict, head: dict, teacher_buffers: str = 'keep', **kwargs) -> None:
        super().__init__(backbone=backbone, neck=neck, head=head, **kwargs)
        if teacher_buffers not in ('keep', 'copy', 'average'):
            raise ValueError(f"teacher_buffers must be 'keep', 'copy' or 'average', got {teacher_buffers!r}")
        self.teacher_buffers = teacher_buffers

    @property
    def student(self) -> nn.ModuleDict:
        """The networks that the teacher follows."""
        modules = {name: getattr(self, name, None) for name in self.student_modules}
        return nn.ModuleDict({name: module for name, module in modules.items() if module is not None})

    def build_teacher(self) -> nn.ModuleDict:
        """Copy the student for use as its teacher; subclasses assign it to ``self.teacher``."""
        teacher = copy.deepcopy(self.student)
        for module in teacher.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
        return teacher.requires_grad_(False)

    def init_weights(self) -> None:
        """Initialize the student and copy its weights to the teacher."""
        super().init_weights()
        self.update_teacher(0.0)
        for name, buffer in self.teacher.named_buffers():
            buffer.copy_(self.student.get_buffer(name))

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student; ``momentum`` in [0, 1] is the weight of the old teacher."""
        parameters = dict(self.student.named_parameters())
        targets = dict(self.teacher.named_parameters())
        sources = [parameters[name] for name in targets]
        update_ema(own_shards(targets.values()), own_shards(sources), momentum)
        if self.teacher_buffers == 'keep':
            return
        for name, buffer in self.teacher.named_buffers():
            source = self.student.get_buffer(name)
            if self.teacher_buffers == 'average' and buffer.is_floating_point():
                buffer.lerp_(source, 1 - momentum)
            else:
                buffer.copy_(source)

    def extract_feat(self, inputs: Tensor | Sequence[Tensor], network: str = 'teacher') -> tuple[Tensor, Tensor]:
        """Compute global representations, (B, D), and local maps, (B, D, h, w), for downstream use.

        Args:
            inputs: Images, (B, C, H, W); of several views, the first is used.
            network: ``'teacher'`` or ``'student'``.

        Raises:
            ValueError: The network is unknown.
        """
        images = inputs if isinstance(inputs, Tensor) else inputs[0]
        backbones = dict(teacher=self.teacher['backbone'], student=self.backbone)
        if network not in backbones:
            raise ValueError(f"network must be 'teacher' or 'student', got {network!r}")
        global_features, local_features = split_features(backbones[network](images))
        return global_features, to_map(local_features, images.shape[-2:])

    def check_views(self, inputs: Sequence[Tensor]) -> None:
        """Check that a batch begins with two global views, (B, C, H, W) each.

        Raises:
            ValueError: It is one tensor, has fewer than two views, or their sizes differ.
        """
        if isinstance(inputs, Tensor) or len(inputs) < 2 or inputs[0].shape != inputs[1].shape:
            raise ValueError(
                f'{type(self).__name__} needs a list of views that begins with two global views of one size; check '
                'MultiView in the pipeline'
            )
