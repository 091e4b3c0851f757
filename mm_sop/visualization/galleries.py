"""Pictures that show what a network has learnt, and what it learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from mmengine.dataset import default_collate
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from mm_sop.evaluation.features import encode_images, extract_features
from mm_sop.evaluation.knn import read_labels
from mm_sop.functional import select_supports
from mm_sop.functional.knn import nearest_neighbors
from mm_sop.visualization.attention import cls_attention, find_last_attention, global_likeness, overlay
from mm_sop.visualization.montage import RIGHT, WRONG, Tile, montage, to_picture

_HIDDEN = 128


@dataclass
class Gallery:
    """A montage and the numbers behind it.

    Attributes:
        image: The montage.
        data: What is shown, ready for JSON.
    """

    image: Image.Image
    data: dict = field(default_factory=dict)


class PictureSet:
    """Pictures of a data set together with what the teacher makes of them.

    Args:
        model: Model in evaluation mode.
        dataset: Data set whose pipeline draws no random numbers.
        limit: Number of pictures that are used, drawn at random from larger sets.
        seed: Seed of that draw.

    Attributes:
        features: Global features, (n, D).
        embeddings: Features after the teacher's neck, (n, d), in methods with a bank of such; else the features.
        labels: Classes, (n,), or None.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, limit: int = 2000, seed: int = 0) -> None:
        self.model = model
        rows = random_rows(len(dataset), limit, seed)
        self.dataset = Subset(dataset, rows.tolist())
        self.classes = dataset.metainfo.get('classes')
        encoded = extract_features(self._encode, self.dataset)
        self.features, self.embeddings = encoded['features'], encoded['embeddings']
        self.labels = read_labels(dataset, 'class', rows)

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, index: int) -> np.ndarray:
        """RGB picture as the network sees it."""
        return to_picture(self.dataset[index]['inputs'], is_bgr(self.model))

    def class_name(self, index: int) -> str:
        """Name of a picture's class, or an empty text."""
        if self.labels is None:
            return ''
        label = int(self.labels[index])
        return self.classes[label] if self.classes else str(label)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Normalised images, (n, C, H, W)."""
        batch = default_collate([self.dataset[index] for index in indices])
        return self.model.data_preprocessor(batch, False)['inputs']

    def _encode(self, batch: dict) -> dict[str, Tensor]:
        features, _ = encode_images(self.model, self.model.data_preprocessor(batch, False)['inputs'])
        embeddings = self.model.teacher['neck'](features) if has_prototypes(self.model) else features
        return dict(features=features, embeddings=embeddings)


def has_prototypes(model: nn.Module) -> bool:
    """Whether a model makes prototypes out of a bank, as SOP does."""
    return hasattr(getattr(model, 'head', None), 'prototypes')


def random_rows(total: int, count: int, seed: int) -> np.ndarray:
    """Rows drawn without replacement, in rising order; all of them if there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def is_bgr(model: nn.Module) -> bool:
    """Whether pictures reach the preprocessor in BGR order."""
    return bool(getattr(model.data_preprocessor, '_channel_conversion', False))


def support_gallery(pictures: PictureSet, num_anchors: int = 6, num_supports: int = 8, seed: int = 0) -> Gallery:
    """Random anchors with the supports that SOP's own selection finds for them.

    Args:
        pictures: Pictures to choose from.
        num_anchors: Number of rows.
        num_supports: Supports beside an anchor.
        seed: Seed of the choice of anchors.
    """
    bank = torch.nn.functional.normalize(pictures.embeddings.float(), dim=1)
    num_supports = min(num_supports, len(pictures) // 2)
    num_anchors = min(num_anchors, len(pictures) - num_supports)
    anchors = torch.from_numpy(random_rows(len(pictures), num_anchors, seed)).to(bank.device)
    members, weights = (part[0].tolist() for part in select_supports(bank, anchors.unsqueeze(0), num_supports))
    rows = []
    for (*supports, anchor), cosines in zip(members, weights, strict=True):
        found = zip(supports, cosines, strict=False)
        tiles = [Tile(pictures.picture(index), f'{cosine:.2f}') for index, cosine in found]
        rows.append([Tile(pictures.picture(anchor), 'anchor'), *tiles])
    mean = float(np.mean([cosines[:-1] for cosines in weights]))
    return Gallery(montage(rows), dict(mean_cosine=mean, cosines=[cosines[:-1] for cosines in weights]))


def neighbor_gallery(
    bank: PictureSet, queries: PictureSet, num_queries: int = 6, num_neighbors: int = 8, seed: int = 0
) -> Gallery:
    """Random queries with their nearest pictures of the bank, framed by whether the class is right.

    Args:
        bank: Pictures with labels.
        queries: Pictures with labels.
        num_queries: Number of rows.
        num_neighbors: Neighbours beside a query.
        seed: Seed of the choice of queries.
    """
    chosen = random_rows(len(queries), num_queries, seed)
    cosines, rows = nearest_neighbors(queries.features[chosen], bank.features, min(num_neighbors, len(bank)))
    tiles, num_right = [], 0
    for query, found in zip(chosen.tolist(), rows.tolist(), strict=True):
        right = [bank.labels[index] == queries.labels[query] for index in found]
        num_right += sum(right)
        neighbors = [
            Tile(bank.picture(index), bank.class_name(index), RIGHT if is_right else WRONG)
            for index, is_right in zip(found, right, strict=True)
        ]
        tiles.append([Tile(queries.picture(query), queries.class_name(query)), *neighbors])
    return Gallery(montage(tiles), dict(share_right=float(num_right / rows.numel()), cosines=cosines.tolist()))


def attention_gallery(pictures: PictureSet, num_pictures: int = 6, seed: int = 0) -> Gallery:
    """Where the network looks in random pictures.

    For vision transformers the attention of [CLS] in the last block, mean and single heads; for other backbones the
    cosine of every place to the global representation.

    Args:
        pictures: Pictures to choose from.
        num_pictures: Number of rows.
        seed: Seed of the choice.
    """
    chosen = random_rows(len(pictures), num_pictures, seed).tolist()
    images = pictures.images(chosen)
    backbone = teacher_backbone(pictures.model)
    if find_last_attention(backbone) is None:
        maps = global_likeness(*encode_images(pictures.model, images))
        names = ['likeness']
    else:
        heads = cls_attention(backbone, images)
        maps = torch.cat([heads.mean(1, keepdim=True), heads], dim=1)
        names = ['mean', *(f'head {number + 1}' for number in range(heads.shape[1]))]
    rows = []
    for index, weights in zip(chosen, maps.float().cpu().numpy(), strict=True):
        picture = pictures.picture(index)
        shown = [Tile(overlay(picture, weight), name) for weight, name in zip(weights, names, strict=True)]
        rows.append([Tile(picture, pictures.class_name(index)), *shown])
    return Gallery(montage(rows, columns=9), dict(maps=names))


def teacher_backbone(model: nn.Module) -> nn.Module:
    """The teacher's backbone, or the only one."""
    teacher = getattr(model, 'teacher', None)
    return teacher['backbone'] if isinstance(teacher, nn.ModuleDict) and 'backbone' in teacher else model.backbone


def view_gallery(dataset: Dataset, bgr: bool, num_pictures: int = 4, seed: int = 0) -> Gallery:
    """Random training pictures and the augmented views that the networks see.

    Args:
        dataset: Training data set.
        bgr: Whether pictures are in BGR order.
        num_pictures: Number of rows.
        seed: Seed of the choice.
    """
    rows = []
    for index in random_rows(len(dataset), num_pictures, seed).tolist():
        views = [to_picture(view, bgr) for view in views_of(dataset[index])]
        tiles = [Tile(view, f'view {number + 1}') for number, view in enumerate(views)]
        rows.append([Tile(load_original(dataset, index, bgr), 'picture'), *tiles])
    return Gallery(montage(rows, columns=9), dict(views=len(views)))


def mask_gallery(dataset: Dataset, bgr: bool, num_pictures: int = 4, seed: int = 0) -> Gallery | None:
    """Global views of random training pictures and what the masks leave of them, or None without masks.

    Args:
        dataset: Training data set.
        bgr: Whether pictures are in BGR order.
        num_pictures: Number of rows.
        seed: Seed of the choice.
    """
    rows, shares = [], []
    for index in random_rows(len(dataset), num_pictures, seed).tolist():
        sample = dataset[index]
        if 'mask' not in sample['data_samples']:
            return None
        tiles = []
        masks = np.asarray(sample['data_samples'].mask, dtype=bool)
        for number, (view, mask) in enumerate(zip(views_of(sample), masks, strict=False)):
            picture = to_picture(view, bgr)
            tiles += [Tile(picture, f'view {number + 1}'), Tile(hide(picture, mask), f'{mask.mean():.0%} hidden')]
            shares.append(float(mask.mean()))
        rows.append(tiles)
    return Gallery(montage(rows), dict(masked_shares=shares))


def hide(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paint the masked patches grey; the mask, (h, w), is stretched to the picture."""
    height, width = picture.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return np.where(mask[rows][:, columns, None], np.uint8(_HIDDEN), picture)


def views_of(sample: dict) -> list[Tensor]:
    """Views of a sample, one or several."""
    inputs = sample['inputs']
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)


def load_original(dataset: Dataset, index: int, bgr: bool) -> np.ndarray:
    """RGB picture as it lies on the disk, loaded by the first step of the pipeline."""
    dataset = getattr(dataset, 'dataset', dataset)
    image = dataset.pipeline.transforms[0](dataset.get_data_info(index))['img']
    return to_picture(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), bgr)
