"""MoCo with weighted semantic positives."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather, broadcast, get_rank, get_world_size
from mmpretrain.models.selfsup import MoCo
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.functional import normalize

from mm_sop.functional.semantic_pairs import known_positives
from mm_sop.models.selfsup.semantic_positives import SemanticPositives
from mm_sop.models.utils.averaged_models import FusedEMA
from mm_sop.models.utils.diagnostics import key_diagnostics
from mm_sop.models.utils.host_integer import HostInteger


@MODELS.register_module()
class SemanticMoCo(SemanticPositives, MoCo):
    """MoCo for the data of SePP.

    With ``semantic_weight=1``, without masking and with two views it equals MMPretrain's ``MoCo`` in float32 bit for
    bit; under autocast similarities stay fp32, and the initial queue is the same on all processes. In SePP's mode
    ``'joint'`` the query has two positives and the ordinary key enters the queue.

    As in MMPretrain, the key encoder is updated in the forward pass, and copies the buffers of the query encoder. If
    gradients are accumulated, it is updated in the first iteration of a step
    (:func:`mm_sop.engine.runner.pace_averaged_models`). The batch is shuffled among the processes for BatchNorm.

    Args:
        head (dict): A ``WeightedContrastiveHead`` where weights are needed, else any contrastive head.
        mask_known_positives (bool): Exclude from the negatives of a query the keys of its own image and of all images
            paired with it, using a queue of image indices beside that of keys. Defaults to False.
        **kwargs: Arguments of :class:`mmpretrain.models.MoCo`, and ``semantic_weight``.
    """

    encoder_k: Any

    def __init__(self, *args, mask_known_positives: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.mask_known_positives = mask_known_positives
        self.encoder_k = FusedEMA(self.encoder_k.module, self.encoder_k.momentum)
        self._pointer = HostInteger()
        # Processes may have different seeds, and buffers are not synchronized.
        broadcast(self.queue)
        if mask_known_positives:
            self.register_buffer('id_queue', torch.full((self.queue_len,), -1))

    def loss(self, inputs: Sequence[Tensor], data_samples: Sequence[DataSample], **kwargs) -> dict[str, Tensor]:
        """Compute ``loss`` and diagnostics, then put the keys into the queue.

        The views, (B, C, H, W) each, are query, key and, in the mode ``'joint'``, a key of the partner.

        Raises:
            ValueError: The length of the queue is not a multiple of the global batch.
        """
        terms = self.positive_terms(inputs, data_samples)
        global_batch = len(inputs[0]) * get_world_size()
        if self.queue_len % global_batch:
            raise ValueError(
                f'queue_len={self.queue_len} of {type(self).__name__} must be a multiple of the global batch of '
                f'{global_batch}; incomplete batches need train_dataloader.drop_last=True'
            )
        queries = normalize(self.neck(self.backbone(inputs[0]))[0].float(), dim=1)
        keys = self._encode_keys([inputs[term.view] for term in terms])
        with torch.autocast(queries.device.type, enabled=False):
            negatives = torch.einsum('nc,ck->nk', [queries, self.queue.clone().detach()])
            positives = [torch.einsum('nc,nc->n', [queries, key]).unsqueeze(-1) for key in keys]
        if self.mask_known_positives:
            ids, partners = self.read_ids(data_samples, queries.device)
            known = known_positives(ids[:, 0], partners[:, 0], self.id_queue)
            negatives = negatives.masked_fill(known, -torch.inf)
            # In the order in which the keys are enqueued next
            key_ids = torch.cat(all_gather(ids[:, terms[0].images[1]]))
            start = self._pointer.read(self.queue_ptr)
            self.id_queue[start : start + len(key_ids)] = key_ids
        losses = [self.head.loss(pos, negatives, **term.options) for pos, term in zip(positives, terms, strict=True)]
        self._dequeue_and_enqueue(keys[0])
        return dict(loss=sum(losses[1:], losses[0]), **key_diagnostics(keys[0]))

    @torch.no_grad()
    def _encode_keys(self, views: Sequence[Tensor]) -> list[Tensor]:
        self.encoder_k.update_parameters(nn.Sequential(self.backbone, self.neck))
        keys = []
        for view in views:
            # Drawn as in MMPretrain's batch_shuffle_ddp, and indexed on the device
            order = torch.randperm(len(view) * get_world_size()).to(view.device, non_blocking=True)
            broadcast(order)
            key = normalize(self.encoder_k(_own_part(view, order))[0].float(), dim=1)
            keys.append(_own_part(key, order.argsort()))
        return keys

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys of the queue by those of all processes, (B, C) each."""
        keys = torch.cat(all_gather(keys))
        start = self._pointer.read(self.queue_ptr)
        self.queue[:, start : start + len(keys)] = keys.T
        self._pointer.write(self.queue_ptr, (start + len(keys)) % self.queue_len)


def _own_part(rows: Tensor, order: Tensor) -> Tensor:
    """Reorder the rows of all processes, (B, ...) each, and select this process's part of the result."""
    return torch.cat(all_gather(rows))[order.unflatten(0, (get_world_size(), -1))[get_rank()]]
