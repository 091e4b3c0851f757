"""SimCLR with weighted semantic positives."""

from collections.abc import Sequence

import torch
from mmengine.dist import all_gather
from mmpretrain.models.selfsup import SimCLR
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_sop.functional.semantic_pairs import known_positives
from mm_sop.models.selfsup.semantic_positives import PositiveTerm, SemanticPositives
from mm_sop.models.utils.diagnostics import key_diagnostics
from mm_sop.utils.distributed import gather_with_gradient


@MODELS.register_module()
class SemanticSimCLR(SemanticPositives, SimCLR):
    """SimCLR for the data of SePP.

    With ``semantic_weight=1``, without masking, with two views and one process it equals MMPretrain's ``SimCLR`` in
    float32 bit for bit. With W processes the gradient is that of one process with the whole batch; MMPretrain's is
    1 / W of it. Every process computes the rows of its own views only, and similarities stay fp32 under autocast. In
    SePP's mode ``'joint'`` the NT-Xent losses of both pairs of views are added.

    Args:
        head (dict): A ``WeightedContrastiveHead`` where weights are needed, else any contrastive head.
        mask_known_positives (bool): Exclude from the negatives of a view the views of its own image and of all images
            paired with it. Defaults to False.
        **kwargs: Arguments of :class:`mmpretrain.models.SimCLR`, and ``semantic_weight``.
    """

    def __init__(self, *args, mask_known_positives: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.mask_known_positives = mask_known_positives

    def loss(self, inputs: Sequence[Tensor], data_samples: Sequence[DataSample], **kwargs) -> dict[str, Tensor]:
        """Compute ``loss`` and diagnostics from two views, (B, C, H, W) each, or three in the mode ``'joint'``."""
        terms = self.positive_terms(inputs, data_samples)
        images = torch.stack(tuple(inputs), 1).flatten(0, 1)
        embeddings = self.neck(self.backbone(images))[0].float()
        embeddings = embeddings / (torch.norm(embeddings, p=2, dim=1, keepdim=True) + 1e-10)
        views = embeddings.unflatten(0, (-1, len(inputs)))
        ids = self.read_ids(data_samples, images.device) if self.mask_known_positives else None
        losses = [self._nt_xent(torch.stack([views[:, 0], views[:, term.view]], 1), term, ids) for term in terms]
        return dict(loss=sum(losses[1:], losses[0]), **key_diagnostics(views[:, 1].detach()))

    def _nt_xent(self, views: Tensor, term: PositiveTerm, ids: tuple[Tensor, Tensor] | None) -> Tensor:
        """NT-Xent of this process's pairs of views, (B, 2, d), among those of all processes."""
        embeddings = views.flatten(0, 1)
        gathered, start = gather_with_gradient(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            similarity = embeddings @ gathered.T
        rows = torch.arange(len(embeddings), device=embeddings.device)
        positives = (rows ^ 1) + start
        if ids is not None:
            # Of the images, (B, 2) and (B, 2, P) -> of the views, (2 B,) and (2 B, P)
            view_ids, partners = (torch.stack([part[:, i] for i in term.images], 1).flatten(0, 1) for part in ids)
            # (2 B, 2 W B): which views of all processes are known positives of each view of this process
            known = known_positives(view_ids, partners, torch.cat(all_gather(view_ids)))
            similarity = similarity.masked_fill(known.scatter(1, positives[:, None], False), -torch.inf)
        # Columns of all views but the two of the image, which are neighbors: known shapes need no boolean mask.
        others = torch.arange(len(gathered) - 2, device=rows.device).expand(len(rows), -1)
        others = others + 2 * (others >= (rows - rows % 2 + start)[:, None])
        negatives = similarity.gather(1, others)
        options = {} if term.weight is None else dict(weight=term.weight.repeat_interleave(2))
        return self.head.loss(similarity.gather(1, positives[:, None]), negatives, **options)
