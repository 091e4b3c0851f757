"""Memory bank, and prototypes drawn from it."""

from mm_sop.models.memory.prototype_sampler import Prototypes, PrototypeSampler
from mm_sop.models.memory.support_embedding_bank import SupportEmbeddingBank

__all__ = ['PrototypeSampler', 'Prototypes', 'SupportEmbeddingBank']
