"""Mining of semantic pairs in a set of images: images, calibration and the manifest (SePP)."""

import io
import json
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop import __version__
from mm_sop.datasets.semantic_pairs import ManifestError, PairManifest, image_info
from mm_sop.datasets.transforms.evaluation import BlackIfUnreadable, EvaluationTransform
from mm_sop.functional.neighbors import BandNeighbors, pair_cosines, search_in_band
from mm_sop.functional.semantic_pairs import select_pairs, suggest_lower_bound
from mm_sop.utils.config import find_pipeline, training_dataset, view_size
from mm_sop.utils.failures import LaunchError
from mm_sop.utils.files import write_atomically
from mm_sop.utils.tables import markdown_table

THRESHOLDS = (0.90, 0.93, 0.95, 0.96, 0.97, 0.98)
"""Lower bounds that a report compares."""

_LARGE_SET = 200_000
_SECONDS_BETWEEN_REPORTS = 10


class PlainImages(Dataset):
    """Training images of a config without augmentation: resized and center-cropped.

    Unreadable images are black, see :class:`BlackIfUnreadable`.

    Args:
        config: Config with a ``train_dataloader``; datasets may be wrapped.
        crop_size: Side of the images. Defaults to None, that of the config's first view.
        resize_edge: Length of the shorter side before cropping, see :class:`EvaluationTransform`.

    Attributes:
        dataset: The dataset without a pipeline.
        transform: Configs of the transforms, JSON-serializable.

    Raises:
        LaunchError: The config has no training data.
    """

    def __init__(self, config: Config, crop_size: int | None = None, resize_edge: int | None = None) -> None:
        settings = training_dataset(config)
        if settings is None:
            raise LaunchError('the config has no train_dataloader: there are no images to mine')
        steps = train_pipeline = find_pipeline(config)
        crop_size = crop_size or view_size(train_pipeline)
        if steps and steps[0]['type'] == 'ApplyToPair':
            steps = steps[0]['transforms']
        loading = [dict(step) for step in steps if step['type'].split('.')[-1].startswith('Load')]
        self.transform = [*loading, *EvaluationTransform(crop_size, resize_edge or None).array_steps]
        self.pipeline = BlackIfUnreadable(self.transform, crop_size)
        self.dataset = DATASETS.build(dict(settings, pipeline=[]))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return self.pipeline(image_info(self.dataset, index))


def choose_images(total: int, count: int | None = None, seed: int = 0) -> np.ndarray:
    """Draw the images that are compared: sorted indices, int64, (K,), of a dataset of ``total`` images.

    Without ``count`` these are all of datasets up to 200,000 images, and a tenth of larger ones.

    Raises:
        ValueError: There are fewer than two images, or fewer than ``count``.
    """
    count = count or (total if total <= _LARGE_SET else round(total / 10))
    if not 2 <= count <= total:
        raise ValueError(f'cannot compare {count} of {total} images: choose 2 ... {total}')
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


@dataclass
class Selection:
    """Criteria of pairs; see :func:`mine_semantic_pairs`.

    Attributes:
        lower: Lower bound of the cosine similarity, or None for the suggested one.
        upper: Upper bound.
        max_per_anchor: Largest number of partners that an image selects, or None for all in the band.
        max_partner_uses: Largest number of images that select the same partner, or None.
        mutual: Whether both images of a pair must select each other.
        budget: Pairs per image that the suggested bound allows.
    """

    lower: float | None = None
    upper: float = 0.99
    max_per_anchor: int | None = 1
    max_partner_uses: int | None = 5
    mutual: bool = False
    budget: float = 0.5


@dataclass
class MinedPairs:
    """Result of :func:`mine`; rows refer to the features.

    Attributes:
        pairs: Pairs in the band, (M, 2).
        cosines: Their cosine similarities, (M,).
        lower: The lower bound used.
        candidates: Pairs below the upper bound, without a lower one, (M', 2).
        candidate_cosines: Their cosine similarities, (M',).
        neighbors: Nearest neighbors of all images.
        random_cosines: Cosine similarities of random pairs.
        report: Numbers for the calibration report.
    """

    pairs: Tensor
    cosines: Tensor
    lower: float
    candidates: Tensor
    candidate_cosines: Tensor
    neighbors: BandNeighbors
    random_cosines: Tensor
    report: dict = field(default_factory=dict)


def mine(
    features: Tensor,
    selection: Selection,
    labels: np.ndarray | None = None,
    num_random: int = 1_000_000,
    seed: int = 0,
    block_size: int = 2048,
) -> MinedPairs:
    """Search without a lower bound, suggest one, and select the pairs in the band.

    Args:
        features: Features, (K, D).
        selection: Criteria of the pairs.
        labels: Classes, (K,), for the precision in the report; they do not affect the selection.
        num_random: Random pairs for the calibration, drawn with the seed.
        block_size: Rows and columns that are compared at once.
    """
    progress = _Progress()
    select = partial(select_pairs, max_partner_uses=selection.max_partner_uses, mutual=selection.mutual)
    neighbors = search_in_band(features, -1.0, selection.upper, selection.max_per_anchor or 1, block_size, progress)
    candidates, cosines = select(neighbors, -1.0)
    random_cosines = _random_cosines(features, num_random, seed)
    suggested = suggest_lower_bound(random_cosines, cosines, len(features), selection.budget)
    lower = suggested if selection.lower is None else selection.lower
    if lower > selection.upper:
        raise ValueError(
            f'no pair can lie in the band {lower:.4f} ... {selection.upper}: raise `upper`, or lower `lower`; the '
            f'features of this encoder have a suggested lower bound of {suggested:.4f}'
        )
    if selection.max_per_anchor is None:
        candidates, cosines = select(search_in_band(features, lower, selection.upper, None, block_size), lower)
    pairs, pair_values = (candidates, cosines) if selection.max_per_anchor is None else select(neighbors, lower)
    result = MinedPairs(pairs, pair_values, lower, candidates, cosines, neighbors, random_cosines)
    result.report = _report(result, features, selection, suggested, labels)
    return result


def _random_cosines(features: Tensor, count: int, seed: int) -> Tensor:
    """Cosine similarities of random pairs of different images with non-zero features."""
    nonzero = features.any(1).nonzero().squeeze(1)
    if len(nonzero) < 2:
        raise ValueError(f'only {len(nonzero)} of {len(features)} images have features: check the encoder')
    generator = torch.Generator().manual_seed(seed)
    count = min(count, len(nonzero) * (len(nonzero) - 1) // 2)
    first = torch.randint(len(nonzero), (count,), generator=generator)
    second = (first + torch.randint(1, len(nonzero), (count,), generator=generator)) % len(nonzero)
    return pair_cosines(features, nonzero[torch.stack([first, second], dim=1)])


def _report(
    result: MinedPairs, features: Tensor, selection: Selection, suggested: float, labels: np.ndarray | None
) -> dict:
    quantiles = torch.tensor([0.5, 0.99, 0.9999], dtype=torch.float64)
    chance = torch.quantile(result.random_cosines.double()[: 2**24], quantiles).tolist()
    nearest = result.neighbors.nearest[result.neighbors.nearest.isfinite()]
    thresholds = []
    for bound in sorted({bound for bound in THRESHOLDS if bound <= selection.upper} | {result.lower}):
        if selection.max_per_anchor is None and bound < result.lower:
            continue  # Without a limit per anchor, only pairs in the band are known.
        pairs = result.candidates[result.candidate_cosines >= torch.tensor(bound, dtype=torch.float32)].numpy()
        images = len(np.unique(pairs))
        row: dict = dict(lower=bound, num_pairs=len(pairs), images=images, coverage=images / len(features))
        if labels is not None:
            same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
            row['precision'] = float(same.mean()) if len(same) else None
        thresholds.append(row)
    return dict(
        num_images=len(features),
        num_without_features=int((~features.any(1)).sum()),
        dimensions=features.shape[1],
        lower=result.lower,
        upper=selection.upper,
        suggested_lower=suggested,
        num_pairs=len(result.pairs),
        pairs_per_image=len(result.pairs) / len(features),
        near_duplicates=int((result.neighbors.nearest_rows >= 0).sum()),
        random_median=chance[0],
        random_p99=chance[1],
        random_p9999=chance[2],
        nearest_median=round(float(nearest.double().median()), 5),
        has_labels=labels is not None,
        thresholds=thresholds,
    )


class _Progress:
    """Logs the fraction of finished comparisons."""

    def __init__(self) -> None:
        self.started = self.shown = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self.shown < _SECONDS_BETWEEN_REPORTS and done < total:
            return
        self.shown = now
        # Block b of the rows is compared with itself and all later blocks.
        fraction = 1 - (total - done) * (total - done + 1) / (total * (total + 1))
        left = (now - self.started) * (1 - fraction) / fraction
        print_log(f'Compared {fraction:.0%} of the pairs, {left:.0f} s left', logger='current')


def make_manifest(mined: MinedPairs, selection: Selection, images: np.ndarray, definition: dict) -> PairManifest:
    """Make the manifest: the pairs and everything that they depend on.

    ``images`` are the indices of the compared images in the dataset, (K,); ``definition`` is that of the features, with
    ``data`` and ``seed``.
    """
    definition = dict(definition)
    data, seed = definition.pop('data'), definition.pop('seed')
    rule = dict(asdict(selection), lower=mined.lower, num_images=len(images), seed=seed, similarity='cosine')
    definition.update(selection=rule, version=__version__)
    return PairManifest(images[mined.pairs.numpy()], mined.cosines.numpy(), data, definition)


def write_manifest(manifest: PairManifest, path: str | Path) -> None:
    """Write a manifest to a JSON file, and its arrays to an ``.npz`` file beside it.

    Raises:
        ManifestError: The file exists with other pairs; it is never overwritten.
    """
    path, text = Path(path), json.dumps(manifest.header, indent=1)
    if path.is_file():
        if path.read_text(encoding='utf-8') == text:
            return
        raise ManifestError(
            f'{path} holds other pairs, and training may rely on them: give the new ones another --name, or delete it'
        )
    buffer = io.BytesIO()
    np.savez(buffer, pairs=manifest.pairs, cosines=manifest.cosines)
    write_atomically(path.with_suffix('.npz'), buffer.getvalue())
    write_atomically(path, text)


def format_report(report: dict, title: str) -> str:
    """Format the calibration report of :func:`mine` as Markdown; the title says what was mined."""
    rows = []
    for row in report['thresholds']:
        precision = '–' if row.get('precision') is None else f'{row["precision"]:.1%}'
        lower = f'{row["lower"]:.4f}' + (' (used)' if row['lower'] == report['lower'] else '')
        per_image = f'{row["num_pairs"] / report["num_images"]:.3f}'
        rows.append([lower, f'{row["num_pairs"]:,}', per_image, f'{row["coverage"]:.1%}', precision])
    headers = ['lower bound', 'pairs', 'pairs per image', 'images in pairs', 'precision']
    return (
        f'# Semantic pairs: {title}\n\n'
        f'{report["num_pairs"]:,} pairs among {report["num_images"]:,} images, cosine {report["lower"]:.4f} ... '
        f'{report["upper"]}. Suggested lower bound: {report["suggested_lower"]:.4f}.\n\n'
        '![Distribution of the cosine similarities](histogram.png)\n\n'
        f'{markdown_table(headers, rows, ["right"] * len(headers))}\n\n'
        'All rows have the same upper bound and limits per image. Precision is the fraction of pairs of equal class, '
        'if classes are known; it does not affect the selection.\n\n'
        f'- Random pairs: median {report["random_median"]:.4f}, 99 % {report["random_p99"]:.4f}, 99.99 % '
        f'{report["random_p9999"]:.4f}\n'
        f'- Nearest neighbors: median {report["nearest_median"]:.4f}\n'
        f'- Images with a near duplicate above the upper bound: {report["near_duplicates"]:,}\n'
        f'- Images whose features are all zero, such as unreadable ones: {report["num_without_features"]:,}\n\n'
        '![Pairs at several cosine similarities](gallery.png)\n'
    )
