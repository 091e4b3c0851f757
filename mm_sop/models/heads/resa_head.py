"""Head of ReSA: predictor and objective."""

from collections.abc import Mapping, Sequence

import torch
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.functional import assigned_keys_loss, symmetric_soft_assignment_loss
from mm_sop.functional.precision import unit_vectors
from mm_sop.models.heads.siamese_head import SiameseHead
from mm_sop.utils.distributed import gather_in_sample_order


@MODELS.register_module()
class ReSAHead(SiameseHead):
    """Cross-entropy between a soft assignment and similarities of student and teacher embeddings (ReSA).

    Args:
        predictor: Config of the predictor, a neck; None for none, as on CIFAR.
        symmetric: Whether to compare every key's softmax over the samples with the assignment as well, as in the paper
            and the first released code; else only every sample's softmax over the keys.
        grad_scale: Factor of the gradient; the logged value stays. ``1 / processes`` gives the gradient of the first
            released code with several processes.

    Raises:
        ValueError: If ``temperature`` or ``grad_scale`` is not positive.
    """

    def __init__(
        self,
        predictor: dict | None = None,
        temperature: float = 0.4,
        symmetric: bool = False,
        grad_scale: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(predictor, loss_weight)
        if temperature <= 0 or grad_scale <= 0:
            raise ValueError(f'temperature and grad_scale must be positive, got {temperature} and {grad_scale}')
        self.temperature = temperature
        self.symmetric = symmetric
        self.grad_scale = grad_scale

    def loss(  # type: ignore[override]  # the assignment is part of every batch
        self, embeddings: Sequence[Tensor], keys: Mapping[int, Tensor], assignment: Tensor
    ) -> dict[str, Tensor]:
        """Compute the objective: the mean over all pairs of a view and the keys of another view.

        Args:
            embeddings: Unit rows of V views of this process's samples, (n, d) each.
            keys: Unit rows of all processes' samples by index of the view, (N, d) each.
            assignment: Soft assignment of the samples to the N anchors behind the keys, (n, N), the same for all pairs.

        Returns:
            ``loss_resa`` and the diagnostic ``assignment_kl``, its excess over the assignment's entropy in nats.
        """
        losses = []
        for key_view, view_keys in keys.items():
            others = [rows for view, rows in enumerate(embeddings) if view != key_view]
            losses.append(self._objective(torch.stack(others), view_keys, assignment))
        loss = torch.stack(losses).mean()
        entropy = torch.special.entr(assignment).sum(-1).mean()
        return dict(loss_resa=self.loss_weight * self._scale(loss), assignment_kl=loss.detach() - entropy)

    def pair_loss(  # type: ignore[override]  # the assignment is part of every batch
        self, predictions: Tensor, targets: Tensor, assignment: Tensor
    ) -> Tensor:
        """Compare predictions of one view with the teacher's projections of another, for :class:`LocalGlobalHead`.

        Args:
            predictions: Of this process's samples, (n, d), or (n, c, d) for c cells per image.
            targets: Of the same images, (n, d), or (n, c, d) if the predictions have no cells.
            assignment: Soft assignment of the samples to all processes' samples, (n, N).
        """
        embeddings, keys = unit_vectors(predictions), gather_in_sample_order(unit_vectors(targets))
        if keys.ndim == 3:
            losses = [self._objective(embeddings, cell, assignment) for cell in keys.unbind(1)]
            return self._scale(torch.stack(losses).mean())
        if embeddings.ndim == 3:
            # Cells lead, like views: (n, c, d) -> (c, n, d)
            embeddings = embeddings.transpose(0, 1)
        return self._scale(self._objective(embeddings, keys, assignment))

    def _scale(self, loss: Tensor) -> Tensor:
        """Scale the gradient and keep the value."""
        return torch.lerp(loss.detach(), loss, self.grad_scale)

    def _objective(self, embeddings: Tensor, keys: Tensor, assignment: Tensor) -> Tensor:
        with torch.autocast(keys.device.type, enabled=False):
            product = embeddings @ keys.T / self.temperature if self.symmetric else assignment @ keys
        if self.symmetric:
            return symmetric_soft_assignment_loss(product, assignment)
        return assigned_keys_loss(embeddings, keys, product, self.temperature)
