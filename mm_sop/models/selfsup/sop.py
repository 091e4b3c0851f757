"""Self-Organizing Visual Prototypes."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mm_sop.models.memory import SupportEmbeddingBank
from mm_sop.models.selfsup.teacher_student import TeacherStudent, remove_mask_token
from mm_sop.models.utils.diagnostics import key_diagnostics
from mm_sop.models.utils.shared_random import SharedRandom
from mm_sop.models.utils.tokens import MaskedTokens, encode_tokens, split_features
from mm_sop.utils.distributed import gather_in_sample_order, own_samples


@MODELS.register_module()
class SOP(TeacherStudent):
    """Self-Organizing Visual Prototypes for Non-Parametric Representation Learning (ICML 2025).

    A student and its moving-average teacher vote for prototypes made of many support embeddings from a memory bank:
    the global representation of every view against the teacher's other view, and every masked patch of the student
    against the same patch of the teacher. There are no learned prototypes.

    Batches hold two global views first, then local crops. Masks come with the data samples (``mask``, one per global
    view) and hide patches from the student only. Without a ``mim_head`` there are no masks: they are ignored, and the
    student has no mask embedding.

    Args:
        mim_head: Config of :class:`SOPMIMHead`; None, together with ``target_generator``, for no MIM.
        key_views: Which of the teacher's two global views are written into the banks; the released implementation
            writes the second only.
        **kwargs: Arguments of :class:`TeacherStudent`. The backbone is a :class:`MaskedVisionTransformer` or declares
            ``accepts_mask``; for the [CLS] objective alone any with tokens or a feature map as output will do. The neck
            is a :class:`SOPNeck`, the head a :class:`SOPHead`, ``target_generator`` a :class:`SOPMIMTargetGenerator`.
    """

    def __init__(self, *, mim_head: dict | None = None, key_views: Sequence[int] = (1,), **kwargs) -> None:
        super().__init__(**kwargs)
        self.mim_head: Any = None if mim_head is None else MODELS.build(mim_head)
        self.key_views = tuple(key_views)
        self.random = SharedRandom()
        self._check_arguments()
        self.teacher = self.build_teacher()
        if self.mim_head is None:
            remove_mask_token(self.backbone)

    def loss(self, inputs: Sequence[Tensor], data_samples: Sequence[DataSample]) -> dict[str, Tensor]:
        """Compute both objectives and diagnostics, then write the teacher's keys into the banks.

        Args:
            inputs: Views, (B, C, H, W) each, two global views first.
            data_samples: One per image, with ``mask`` (2, h, w) where patches are hidden.
        """
        self.check_views(inputs)
        batch = len(inputs[0])
        views = torch.cat(tuple(inputs[:2]))
        masked = None if self.mim_head is None else MaskedTokens.from_samples(data_samples, views.device)
        if masked is None:
            student_global = split_features(self.backbone(views))[0]
            with torch.no_grad():
                teacher_global = split_features(self.teacher['backbone'](views))[0]
        else:
            num_tokens = masked.mask[0].numel()
            student_global, student_tokens = encode_tokens(
                self.backbone, views, masked.positions, num_tokens, masked.mask
            )
            positions = torch.cat([masked.positions, self._draw_key_positions(batch, num_tokens, views.device)])
            with torch.no_grad():
                teacher_global, teacher_tokens = encode_tokens(self.teacher['backbone'], views, positions, num_tokens)
        teacher_cls = self._teacher_embeddings(teacher_global).unflatten(0, (2, batch))
        student_cls = self.neck(torch.cat([student_global, *self._encode_crops(inputs[2:])]))

        losses = self.head.loss(student_cls.unflatten(0, (-1, batch)), teacher_cls)
        keys = {self.head.prototypes.bank: torch.cat([teacher_cls[view] for view in self.key_views])}
        losses.update(key_diagnostics(teacher_cls[1]))
        if masked is not None:
            mim_losses, patch_keys = self._mim_loss(student_tokens, teacher_tokens, masked)
            keys[self.target_generator.prototypes.bank] = patch_keys
            losses.update(mim_losses)
        self._enqueue(keys)
        return losses

    def _mim_loss(self, student: Tensor, teacher: Tensor, masked: MaskedTokens) -> tuple[dict[str, Tensor], Tensor]:
        """The patch objective, and one random patch embedding per image for the bank.

        The tokens are the masked ones, (m, D); the teacher's are followed by those that become keys.
        """
        target_embeddings, keys = self._teacher_embeddings(teacher).tensor_split([len(masked)])
        targets = self.target_generator(target_embeddings)
        embeddings = self.neck(student) if len(masked) else target_embeddings
        losses = self.mim_head.loss(embeddings, targets, masked.weights)
        losses['masked_fraction'] = masked.fraction
        return losses, keys

    def _encode_crops(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """Global representations of local crops, with one forward pass per crop size."""
        by_size: dict[torch.Size, list[Tensor]] = {}
        for crop in crops:
            by_size.setdefault(crop.shape[-2:], []).append(crop)
        return [split_features(self.backbone(torch.cat(same_size)))[0] for same_size in by_size.values()]

    @torch.no_grad()
    def _teacher_embeddings(self, tokens: Tensor) -> Tensor:
        return self.teacher['neck'](tokens)

    def _draw_key_positions(self, batch: int, num_tokens: int, device: torch.device) -> Tensor:
        """Draw one token of every image of the key views among those of all images, (len(key_views) B,)."""
        size = batch * get_world_size(), len(self.key_views)
        drawn = own_samples(torch.randint(num_tokens, size, generator=self.random.next_generator(), device=device))
        images = torch.arange(2 * batch, device=device).view(2, batch)
        return torch.cat([images[view] * num_tokens + drawn[:, i] for i, view in enumerate(self.key_views)])

    @torch.no_grad()
    def _enqueue(self, keys: dict[SupportEmbeddingBank, Tensor]) -> None:
        """Write the keys of every bank, gathered from all processes in one collective."""
        num_views = len(self.key_views)
        widths = [key.shape[-1] for key in keys.values()]
        # Samples lead, so that gathered rows are in the order of the global batch.
        packed = torch.cat([key.unflatten(0, (num_views, -1)).transpose(0, 1) for key in keys.values()], dim=-1)
        gathered = gather_in_sample_order(packed).transpose(0, 1).flatten(0, 1)
        for bank, key in zip(keys, gathered.split(widths, dim=-1), strict=True):
            bank.enqueue(key)

    def set_teacher_temperature(self, temperature: float) -> None:
        """Set the temperature of the teacher's votes in both objectives."""
        for owner in (self.head, self.target_generator):
            if owner is not None:
                owner.teacher_temperature = temperature

    def build_teacher(self) -> nn.ModuleDict:
        """Copy the student without the mask embedding: the teacher sees whole images."""
        teacher = super().build_teacher()
        remove_mask_token(teacher['backbone'])
        return teacher

    def _check_arguments(self) -> None:
        if (self.mim_head is None) != (self.target_generator is None):
            raise ValueError('target_generator and mim_head belong together: give both or neither')
        if self.mim_head is not None and not getattr(self.backbone, 'accepts_mask', False):
            raise ValueError(
                f'{type(self.backbone).__name__} cannot mask patches: use MaskedVisionTransformer, or remove '
                'target_generator and mim_head to train on [CLS] alone'
            )
        if not self.key_views or not set(self.key_views) <= {0, 1}:
            raise ValueError(f'key_views must name one or both of the global views 0 and 1, got {self.key_views}')
