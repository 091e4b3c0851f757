"""Semantic positive pairs (SePP): the manifest that stores them and the dataset that yields them."""

from mm_sop.datasets.semantic_pairs.dataset import MODES, SemanticPairDataset, pair_pipeline
from mm_sop.datasets.semantic_pairs.manifest import (
    MANIFEST_FORMAT,
    ManifestError,
    PairManifest,
    describe_data,
    hash_pairs,
    image_info,
    refreshed_manifest,
)

__all__ = [
    'MANIFEST_FORMAT',
    'MODES',
    'ManifestError',
    'PairManifest',
    'SemanticPairDataset',
    'describe_data',
    'hash_pairs',
    'image_info',
    'pair_pipeline',
    'refreshed_manifest',
]
