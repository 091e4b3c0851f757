"""Local representations: similarity to each other and to the whole image, receptive field, and what they encode."""

from dataclasses import dataclass

import numpy as np
import torch
from mmengine.dataset import BaseDataset, default_collate
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import normalize, pad

from mm_sop.datasets.transforms.perturb import image_generator
from mm_sop.encoders.encoder import Encoder
from mm_sop.evaluation.classification.logistic import FrozenClassifiers
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.features.attention import cls_attention, find_last_attention, global_similarity
from mm_sop.evaluation.labeled_data import (
    class_labels,
    class_names,
    find_classification,
    random_rows,
    random_subset,
    read_labels,
)
from mm_sop.evaluation.robustness.disturbances import batch_labels
from mm_sop.evaluation.standard_errors import mean_standard_error
from mm_sop.functional.effective_field import input_gradients, mass_radius, median_position
from mm_sop.functional.local_global import cosine_between_images, local_global_similarity, redundancy
from mm_sop.functional.receptive_field import receptive_field
from mm_sop.models.utils.readout import read_out

# UMAP needs a few neighbors.
_MIN_EMBEDDED = 4


@PROTOCOLS.register_module('locality')
@dataclass
class LocalityProtocol(Protocol):
    """Redundancy and effective receptive field of local representations (CO-SSL), and images of what they encode.

    Redundancy is the mean cosine similarity between different positions of an image, before any projector. For
    comparison, the cosine similarity of the positions to the global representation is measured, and both between
    different images. The effective receptive field is the mean absolute gradient of the norm of the central position
    with respect to the pixels; its radius is that of the disc around its median with 50 or 90 % of it.

    A linear head measures how well single positions predict the class: it is trained on one random position of each
    training image and tested on all positions of the test images. Another one is trained and tested on the mean of the
    positions.

    Args:
        max_images: Test images, drawn at random; None for all.
        max_gradients: Test images over which gradients are averaged.
        max_embedded: Test images in the chart of the embedding by UMAP; no chart for fewer than four.
        num_images: Test images whose maps are shown.
        penalty: Weight of the penalty of the linear heads.
    """

    version = 3
    readouts = ('global', 'patch')

    max_images: int | None = 5000
    max_gradients: int = 250
    max_embedded: int = 1000
    num_images: int = 6
    penalty: float = 1e-4

    def find_data(self, context: EvaluationContext) -> dict[str, BaseDataset]:
        found = find_classification(context.data, context.transform)
        test = random_subset(list(found.values())[-1], self.max_images, context.seed)
        return dict(train=found['train'], test=test)

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        test, encoder = data['test'], context.encoder
        scores, cosines = _measure_cosines(context, test)
        radii, field = self._effective_field(context, test)
        scores.update(radii)
        scores.update(self._probe(context, **data))
        maps = spatial_maps(encoder, test, self.num_images, context.seed)
        shown = dict(cosines=cosines, field=field, maps=maps)
        if min(self.max_embedded, len(test)) >= _MIN_EMBEDDED:
            print_log('Locality: embedding by UMAP', logger='current')
            drawn = random_subset(test, self.max_embedded, context.seed)
            points = to_plane(context.features(drawn), context.seed)
            shown['embedding'] = dict(points=points, labels=class_labels(drawn).numpy(), classes=class_names(drawn))
        try:
            theoretical = receptive_field(encoder.network)._asdict()
        except Exception:  # tracing runs the code of any network on symbols, which may raise anything
            theoretical = None  # unknown, or the whole image
        return ProtocolResult(scores, dict(receptive_field=theoretical), shown)

    def _effective_field(self, context: EvaluationContext, test: BaseDataset) -> tuple[dict[str, Score], dict]:
        """Radii as scores; field, center and radii as data of a chart."""
        print_log('Locality: effective receptive field', logger='current')
        encoder = context.encoder

        def measure(batch: dict) -> dict[str, Tensor]:
            images = encoder.data_preprocessor(batch, False)['inputs']
            gradients = input_gradients(lambda pixels: read_out(encoder.network, pixels).local_map, images)
            return dict(gradients=gradients.flatten(1))

        subset = random_subset(test, self.max_gradients, context.seed)
        gradients = context.map_images(subset, measure, 'gradients')['gradients']
        field = gradients.double().mean(0).view(context.transform.crop_size, -1)
        center = median_position(field)
        radii = [(fraction, mass_radius(field, center, fraction)) for fraction in (0.5, 0.9)]
        scores = {f'field_radius_{100 * fraction:.0f}': Score(radius, percent=False) for fraction, radius in radii}
        return scores, dict(field=field.numpy(), center=center, radii=radii)

    def _probe(self, context: EvaluationContext, train: BaseDataset, test: BaseDataset) -> dict[str, Score]:
        """Accuracy of single positions, averaged over them, and of their mean."""
        print_log('Locality: linear heads on single positions and on their mean', logger='current')

        def read_positions(batch: dict) -> Tensor:
            local_map = context.encoder.read(batch).local_map
            return local_map.float().flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h w, D)

        def draw(batch: dict) -> dict[str, Tensor]:
            """A random position of every map, drawn by seed and image."""
            positions = read_positions(batch)
            generators = [image_generator(image.numpy(), context.seed) for image in batch['inputs']]
            drawn = [int(generator.integers(positions.shape[1])) for generator in generators]
            return dict(position=positions[torch.arange(len(positions)), drawn])

        labels = class_labels(train)
        drawn = context.map_images(train, draw, 'positions')['position']
        single, mean = (
            FrozenClassifiers(features.to(context.device), labels, penalty=self.penalty)
            for features in (drawn, context.features(train, 'patch'))
        )

        def judge(batch: dict) -> dict[str, Tensor]:
            """Whether the prediction of every position is right, (B, h w)."""
            predicted = single.logits(read_positions(batch)).argmax(2)
            return dict(right=predicted == batch_labels(batch).to(predicted.device)[:, None])

        judged = context.map_images(test, judge, 'judged')['right']
        logits = mean.logits(context.features(test, 'patch').to(context.device))
        right = dict(single_position=judged.mean(1), mean_of_positions=logits.argmax(1).cpu() == class_labels(test))
        identities = read_labels(test, 'identity')
        return {
            name: Score(float(each.double().mean()), mean_standard_error(each.double().numpy(), identities))
            for name, each in right.items()
        }


def _measure_cosines(context: EvaluationContext, dataset: BaseDataset) -> tuple[dict[str, Score], dict]:
    """Scores, and as data of a chart the cosines of every image and the mean between different images."""

    def measure(batch: dict) -> dict[str, Tensor]:
        readout = context.encoder.read(batch)
        local, whole = readout.local_map.float(), readout.global_features.float()
        measures = dict(redundancy=redundancy(local)[:, None], local=normalize(local, dim=1).mean((2, 3)))
        # A head after the pooling may change the dimension.
        if local.shape[1] == whole.shape[1]:
            measures.update(local_global=local_global_similarity(local, whole)[:, None], whole=normalize(whole, dim=1))
        return measures

    measured = {name: each.double() for name, each in context.map_images(dataset, measure, 'cosines').items()}
    identities = read_labels(dataset, 'identity')
    scores, within, between = {}, {}, {}
    for name, partner in dict(redundancy='local', local_global='whole').items():
        if name in measured:
            values = within[name] = measured[name][:, 0].numpy()
            between[name] = float(cosine_between_images(measured['local'], measured[partner]))
            scores[name] = Score(float(values.mean()), mean_standard_error(values, identities), percent=False)
            scores[f'{name}_between_images'] = Score(between[name], percent=False)
    return scores, dict(within=within, between=between)


@torch.no_grad()
def spatial_maps(encoder: Encoder, dataset: BaseDataset, num_images: int = 6, seed: int = 0) -> dict:
    """Maps of random images: principal components, similarity to the whole image, and attention if there is [CLS].

    The pipeline of the dataset must draw no random numbers.

    Returns:
        ``images``, uint8, (B, 3, H, W), BGR; ``components``, see :func:`principal_maps`; ``maps`` by name, (B, h, w).
    """
    batch = default_collate([dataset[row] for row in random_rows(len(dataset), num_images, seed).tolist()])
    images = encoder.data_preprocessor(batch, False)['inputs']
    readout = read_out(encoder.network, images)
    maps = {}
    if readout.global_features.shape[1] == readout.local_map.shape[1]:
        maps['similarity'] = global_similarity(readout.global_features, readout.local_map)[:, 0]
    if find_last_attention(encoder.network) is not None:
        heads = cls_attention(encoder.network, images)
        maps['attention'] = heads.mean(1)
        maps.update({f'head {number + 1}': heads[:, number] for number in range(heads.shape[1])})
    return dict(
        images=batch['inputs'].numpy(),
        components=principal_maps(readout.local_map.float()),
        maps={name: each.float().cpu().numpy() for name, each in maps.items()},
    )


def principal_maps(local_map: Tensor) -> np.ndarray:
    """The first three principal components of all positions as colors, as in DINOv2.

    Args:
        local_map: (B, D, h, w).

    Returns:
        RGB, uint8, (B, h, w, 3); each component is stretched from its 1st to its 99th percentile. If there are fewer
        than three, the others are zero.
    """
    count, _, height, width = local_map.shape
    # (B, D, h, w) -> (B h w, D)
    positions = local_map.double().cpu().permute(0, 2, 3, 1).flatten(0, 2)
    centered = positions - positions.mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    # The sign of a component is arbitrary; fixed, it is the same on every machine.
    directions = directions[:3] * directions[:3].gather(1, directions[:3].abs().argmax(1, keepdim=True)).sign()
    components = pad(centered @ directions.T, (0, 3 - len(directions))).numpy()
    low, high = np.percentile(components, (1, 99), axis=0)
    scaled = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (255 * scaled).round().astype(np.uint8).reshape(count, height, width, 3)


def to_plane(features: Tensor, seed: int = 0) -> np.ndarray:
    """Reduce N > 3 features to two dimensions, (N, D) -> (N, 2), by UMAP on cosine distances (McInnes et al., 2018)."""
    from umap import UMAP

    plane = UMAP(n_neighbors=min(15, len(features) - 1), metric='cosine', init='pca', random_state=seed, n_jobs=1)
    return plane.fit_transform(features.float().numpy())
