"""Memory bank of teacher embeddings."""

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor
from torch.nn.functional import normalize


@MODELS.register_module()
class SupportEmbeddingBank(BaseModule):
    """First-in-first-out bank of unit embeddings, the non-parametric support of SOP (section 3).

    The rows, (N, d), contiguous and in fp32, and the write position are in the state dict. A copy of the write position
    on the host avoids synchronization with the device. The bank starts with random unit rows.
    """

    def __init__(self, size: int = 65536, embed_dims: int = 256) -> None:
        super().__init__()
        if size < 1 or embed_dims < 1:
            raise ValueError(f'size and embed_dims of a bank must be positive, got {size} and {embed_dims}')
        self.register_buffer('embeddings', normalize(torch.randn(size, embed_dims), dim=1))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.int64))
        self._pointer = 0

    def __len__(self) -> int:
        return len(self.embeddings)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write keys, unit rows (B, d) that are equal on all processes, over the oldest rows, in a ring.

        Raises:
            ValueError: If there are more keys than rows.
        """
        size = len(self)
        if len(keys) > size:
            raise ValueError(
                f'{len(keys)} keys do not fit into a bank of {size} rows: lower the global batch size or raise the '
                'size of the bank'
            )
        keys = keys.to(self.embeddings.dtype)
        until_end = min(len(keys), size - self._pointer)
        self.embeddings[self._pointer : self._pointer + until_end] = keys[:until_end]
        self.embeddings[: len(keys) - until_end] = keys[until_end:]
        self._pointer = (self._pointer + len(keys)) % size
        self.pointer.fill_(self._pointer)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._pointer = int(self.pointer)

    def extra_repr(self) -> str:
        return f'size={len(self)}, embed_dims={self.embeddings.shape[1]}'
