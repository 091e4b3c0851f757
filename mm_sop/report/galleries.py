"""Galleries of images that show what a network has learned, and what it learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmpretrain.registry import DATASETS
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Subset

from mm_sop.datasets.seeded import TakesSeed
from mm_sop.evaluation.features.attention import cls_attention, find_last_attention, global_similarity
from mm_sop.evaluation.features.extraction import encode_images, extract_features
from mm_sop.evaluation.labeled_data import random_rows, read_labels
from mm_sop.functional import augment, select_supports
from mm_sop.functional.neighbors import nearest_neighbors
from mm_sop.report.montage import RIGHT, WRONG, Tile, montage, to_image
from mm_sop.report.predictions import overlay
from mm_sop.utils.config import find_knn_settings

GALLERIES = dict(
    supports=(
        'Anchors and their supports',
        'Each row is a self-organizing prototype: a random anchor and the 8 images nearest to it, with their cosine '
        'similarity to it, after the teacher’s projector. In training, prototypes are drawn in the same way from the '
        'memory bank of augmented views. Near-equal similarities close to 1 in all rows would mean collapse.',
    ),
    neighbors=(
        'Nearest neighbors',
        'Left: random queries. Right: the nearest images of the labeled bank by the network’s features. Green: of the '
        'same class. Orange: of another.',
    ),
    attention=(
        'Where the network looks',
        'Vision transformers: attention of [CLS] to the patches in the last block, first the mean, then every head. '
        'Other networks: cosine similarity of each position to the global representation. Brighter is higher.',
    ),
    views=('Views', 'Training images as stored, and the augmented views that the networks receive.'),
    masks=(
        'Masks',
        'The teacher sees whole views, the student sees them with some patches hidden. Some views are not masked.',
    ),
)
"""Title and explanation of every gallery."""

_MASK_GRAY = 128

# Map-style dataset with a length. Those of OpenMMLab also have `pipeline`, `get_data_info` and `metainfo`.
Images = Any


@dataclass
class Gallery:
    """A montage and the JSON-serializable numbers behind it."""

    image: Image.Image
    data: dict = field(default_factory=dict)


class ImageSet:
    """Images of a dataset with the teacher's features.

    Args:
        model: Model in evaluation mode.
        dataset: Dataset whose pipeline is deterministic.
        limit: Number of images used; larger datasets are sampled at random.
        seed: Seed of the sample.

    Attributes:
        features: Global features, (n, D).
        embeddings: Features after the teacher's neck, (n, d), for methods with prototypes; else ``features``.
        labels: Classes, (n,), or None.
    """

    def __init__(self, model: nn.Module, dataset: Images, limit: int = 2000, seed: int = 0) -> None:
        # Submodules differ between the methods.
        self.model: Any = model
        rows = random_rows(len(dataset), limit, seed)
        self.dataset: Subset = Subset(dataset, rows.tolist())
        self.classes = dataset.metainfo.get('classes')
        encoded = extract_features(self._encode, self.dataset)
        self.features, self.embeddings = encoded['features'], encoded['embeddings']
        self.labels = read_labels(dataset, 'class', rows)

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> np.ndarray:
        """RGB image as the network sees it."""
        return to_image(self.dataset[index]['inputs'], is_bgr(self.model))

    def class_name(self, index: int) -> str:
        """Name of an image's class; empty without labels."""
        if self.labels is None:
            return ''
        label = int(self.labels[index])
        return self.classes[label] if self.classes else str(label)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Normalized images, (n, C, H, W)."""
        batch = default_collate([self.dataset[index] for index in indices])
        return self.model.data_preprocessor(batch, False)['inputs']

    def _encode(self, batch: dict) -> dict[str, Tensor]:
        features, _ = encode_images(self.model, self.model.data_preprocessor(batch, False)['inputs'])
        embeddings = self.model.teacher['neck'](features) if has_prototypes(self.model) else features
        return dict(features=features, embeddings=embeddings)


def draw_galleries(config: Config, model: nn.Module, seed: int) -> dict[str, Gallery]:
    """Draw all galleries that fit a run, by name as in :data:`GALLERIES`; the model is in evaluation mode."""
    train = build_train_dataset(config)
    bank, queries = build_evaluation_datasets(config, train)
    images = ImageSet(model, bank, seed=seed)
    unseen = images if queries is None else ImageSet(model, queries, seed=seed)
    has_labels = queries is not None and unseen.labels is not None
    bgr = is_bgr(model)
    drawn = dict(
        supports=support_gallery(images, seed=seed) if has_prototypes(model) else None,
        neighbors=neighbor_gallery(images, unseen, seed=seed) if has_labels else None,
        attention=attention_gallery(unseen, seed=seed),
        views=view_gallery(train, bgr, seed=seed) if train else None,
        masks=mask_gallery(train, bgr, seed=seed) if train else None,
    )
    return {name: gallery for name, gallery in drawn.items() if gallery is not None}


def build_train_dataset(config: Config) -> Images | None:
    """Build the training dataset of a config, or return None if it has none."""
    loader = config.get('train_dataloader')
    if not loader:
        return None
    dataset = DATASETS.build(loader['dataset'])
    if isinstance(dataset, TakesSeed):
        dataset.set_default_seed(config.get('randomness', {}).get('seed') or 0)
    return dataset


def build_evaluation_datasets(config: Config, train: Images | None) -> tuple[Images, Images | None]:
    """Build bank and unseen queries of the config's KNNHook; without one, unaugmented training images and None.

    Raises:
        ValueError: If there is neither a KNNHook nor a training dataset.
    """
    knn = find_knn_settings(config)
    if knn:
        queries = knn['queries']
        name = 'test' if 'test' in queries else list(queries)[-1]
        return DATASETS.build(knn['bank']), DATASETS.build(queries[name])
    if train is None:
        raise ValueError('the config has neither a KNNHook nor a train_dataloader: there are no images to show')
    settings = config['train_dataloader']['dataset']
    settings = dict(settings.get('dataset', settings))
    side = views_of(train[0])[0].shape[-1]
    settings['pipeline'] = [
        settings['pipeline'][0],
        dict(type='TrimLongSide'),
        dict(type='ResizeEdge', scale=side, edge='short', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=side),
        dict(type='PackInputs'),
    ]
    return DATASETS.build(settings), None


def has_prototypes(model: nn.Module) -> bool:
    """Whether a model forms prototypes from a bank, as SOP does."""
    return hasattr(getattr(model, 'head', None), 'prototypes')


def is_bgr(model: nn.Module) -> bool:
    """Whether images reach the data preprocessor in BGR order."""
    # MMEngine's and MMPretrain's preprocessors have no public attribute in common that says so.
    return bool(getattr(model.data_preprocessor, '_channel_conversion', False))


def support_gallery(images: ImageSet, num_anchors: int = 6, num_supports: int = 8, seed: int = 0) -> Gallery:
    """Draw random anchors with the supports that SOP's own selection finds for them."""
    bank = torch.nn.functional.normalize(images.embeddings.float(), dim=1)
    num_supports = min(num_supports, len(images) // 2)
    num_anchors = min(num_anchors, len(images) - num_supports)
    anchors = torch.from_numpy(random_rows(len(images), num_anchors, seed)).to(bank.device)
    members, weights = (part[0].tolist() for part in select_supports(bank, anchors.unsqueeze(0), num_supports))
    rows = []
    for (*supports, anchor), cosines in zip(members, weights, strict=True):
        found = zip(supports, cosines, strict=False)
        tiles = [Tile(images.image(index), f'{cosine:.2f}') for index, cosine in found]
        rows.append([Tile(images.image(anchor), 'anchor'), *tiles])
    without_anchor = [cosines[:-1] for cosines in weights]
    return Gallery(montage(rows), dict(mean_cosine=float(np.mean(without_anchor)), cosines=without_anchor))


def neighbor_gallery(
    bank: ImageSet, queries: ImageSet, num_queries: int = 6, num_neighbors: int = 8, seed: int = 0
) -> Gallery:
    """Draw random queries with their nearest images of the bank, framed by whether the class is right.

    Raises:
        ValueError: If one of the datasets has no labels.
    """
    if bank.labels is None or queries.labels is None:
        raise ValueError('neighbors can only be judged with labels of the bank and of the queries')
    chosen = random_rows(len(queries), num_queries, seed)
    cosines, rows = nearest_neighbors(queries.features[chosen], bank.features, min(num_neighbors, len(bank)))
    tiles, num_right = [], 0
    for query, found in zip(chosen.tolist(), rows.tolist(), strict=True):
        right = [bank.labels[index] == queries.labels[query] for index in found]
        num_right += sum(right)
        neighbors = [
            Tile(bank.image(index), bank.class_name(index), RIGHT if is_right else WRONG)
            for index, is_right in zip(found, right, strict=True)
        ]
        tiles.append([Tile(queries.image(query), queries.class_name(query)), *neighbors])
    return Gallery(montage(tiles), dict(right_fraction=float(num_right / rows.numel()), cosines=cosines.tolist()))


def attention_gallery(images: ImageSet, num_images: int = 6, seed: int = 0) -> Gallery:
    """Draw where the network looks in random images.

    For vision transformers: the attention of [CLS] in the last block, the mean and every head. For other backbones:
    the cosine similarity of every position to the global representation.
    """
    chosen = random_rows(len(images), num_images, seed).tolist()
    batch, teacher = images.images(chosen), getattr(images.model, 'teacher', None)
    has_backbone = isinstance(teacher, nn.ModuleDict) and 'backbone' in teacher
    network: Any = teacher if has_backbone else images.model
    backbone = network.get_submodule('backbone')
    if find_last_attention(backbone) is None:
        maps = global_similarity(*encode_images(images.model, batch))
        names = ['similarity']
    else:
        heads = cls_attention(backbone, batch)
        maps = torch.cat([heads.mean(1, keepdim=True), heads], dim=1)
        names = ['mean', *(f'head {number + 1}' for number in range(heads.shape[1]))]
    rows = []
    for index, weights in zip(chosen, maps.float().cpu().numpy(), strict=True):
        image = images.image(index)
        shown = [Tile(overlay(image, weight), name) for weight, name in zip(weights, names, strict=True)]
        rows.append([Tile(image, images.class_name(index)), *shown])
    return Gallery(montage(rows, columns=9), dict(maps=names))


def view_gallery(dataset: Images, bgr: bool, num_images: int = 4, seed: int = 0) -> Gallery:
    """Draw random training images and the augmented views that the networks see."""
    stored: Any = getattr(dataset, 'dataset', dataset)
    rows = []
    for index in random_rows(len(dataset), num_images, seed).tolist():
        views = [to_image(view, bgr) for view in views_of(dataset[index])]
        # The first step of the pipeline loads the image.
        pixels = np.ascontiguousarray(stored.pipeline.transforms[0](stored.get_data_info(index))['img'])
        tiles = [Tile(view, f'view {number + 1}') for number, view in enumerate(views)]
        rows.append([Tile(to_image(torch.from_numpy(pixels).permute(2, 0, 1), bgr), 'image'), *tiles])
    return Gallery(montage(rows, columns=9), dict(views=len(views)))


def mask_gallery(dataset: Images, bgr: bool, num_images: int = 4, seed: int = 0) -> Gallery | None:
    """Draw global views of random training images and what their masks leave visible; None without masks."""
    rows, fractions = [], []
    for index in random_rows(len(dataset), num_images, seed).tolist():
        sample = dataset[index]
        if 'mask' not in sample['data_samples']:
            return None
        tiles = []
        masks = np.asarray(sample['data_samples'].mask, dtype=bool)
        for number, (view, mask) in enumerate(zip(views_of(sample), masks, strict=False)):
            image = to_image(view, bgr)
            tiles += [Tile(image, f'view {number + 1}'), Tile(hide(image, mask), f'{mask.mean():.0%} hidden')]
            fractions.append(float(mask.mean()))
        rows.append(tiles)
    return Gallery(montage(rows), dict(masked_fractions=fractions))


def hide(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paint masked patches gray; the mask, (h, w), is stretched to the image, (H, W, 3)."""
    height, width = image.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return np.where(mask[rows][:, columns, None], np.uint8(_MASK_GRAY), image)


def views_of(sample: dict) -> list[Tensor]:
    """Views of a sample, one or several, as the networks see them."""
    inputs, parameters = sample['inputs'], sample.get('augmentations')
    views = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if parameters is None:
        return views
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    pairs = zip(views, parameters, strict=True)
    return [augment(view[None], row[None])[0].to(view.dtype) for view, row in pairs]
