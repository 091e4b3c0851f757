"""What the places of a map know: of their neighbourhood, of the whole picture, and of each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import Dataset

from mm_sop.datasets.transforms.perturb import picture_generator
from mm_sop.evaluation.classification import class_labels
from mm_sop.evaluation.disturbances import batch_labels
from mm_sop.evaluation.encoders import FrozenEncoder
from mm_sop.evaluation.frozen_classifiers import FrozenClassifiers, map_pictures
from mm_sop.evaluation.knn import read_labels
from mm_sop.evaluation.perturbed_data import random_subset
from mm_sop.evaluation.protocol import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.sources import class_names, find_classification
from mm_sop.evaluation.uncertainty import clustered_standard_error
from mm_sop.functional.effective_field import input_gradients, mass_radius, median_position
from mm_sop.functional.local_global import cosine_between_images, local_global_similarity, redundancy
from mm_sop.functional.receptive_field import receptive_field
from mm_sop.models.utils.readout import read_out
from mm_sop.visualization.locality import (
    cosines_chart,
    effective_field_chart,
    embedding_chart,
    local_gallery,
    to_plane,
)
from mm_sop.visualization.page import Chart


@PROTOCOLS.register_module('locality')
@dataclass
class LocalityProtocol(Protocol):
    """Redundancy and effective receptive field of local representations (CO-SSL), and pictures of what they hold.

    Redundancy is the mean cosine between different places of one picture, before any projector; beside it stand the
    cosine of the places to the global representation, and both between different pictures for comparison. The effective
    receptive field is the mean absolute gradient of the length of the central place with respect to the pixels; its
    radius is that of the disc around its median which holds a half or nine tenths of it.

    What single places know of the class is told by a linear head that learns from one random place of each training
    picture and judges every place of the test pictures; another one learns from and judges the mean of the places.

    Args:
        max_images: Test pictures, drawn at random; None for all.
        max_gradients: Test pictures whose gradients are averaged.
        max_embedded: Test pictures in the picture of the embedding, by UMAP; 0 for no such picture, nor is there one of
            fewer than four.
        num_pictures: Test pictures whose maps are shown.
        penalty: Weight of the penalty of the linear heads.
    """

    version = 2

    max_images: int | None = 5000
    max_gradients: int = 250
    max_embedded: int = 1000
    num_pictures: int = 6
    penalty: float = 1e-4

    @property
    def readouts(self) -> tuple[str, ...]:
        return 'global', 'patch'

    def find_data(self, context: EvaluationContext) -> dict[str, Dataset]:
        found = find_classification(context.data, context.transform)
        test = random_subset(list(found.values())[-1], self.max_images, context.seed)
        return dict(train=found['train'], test=test)

    def run(self, context: EvaluationContext, data: dict[str, Dataset]) -> ProtocolResult:
        test = data['test']
        measured = map_pictures(context, test, partial(_measure, context.encoder), 'cosines')
        scores, within, between = _cosines(measured, test)
        print_log('Locality: effective receptive field', logger='current')
        shown = random_subset(test, self.max_gradients, context.seed)
        gradients = map_pictures(context, shown, partial(_gradients, context.encoder), 'gradients')['gradients']
        field = gradients.double().mean(0).view(context.transform.crop_size, -1)
        center = median_position(field)
        radii = {share: mass_radius(field, center, share) for share in (0.5, 0.9)}
        for share, radius in radii.items():
            scores[f'field_radius_{round(100 * share)}'] = Score(radius, percent=False)
        scores.update(self._probe(context, **data))
        card = dict(receptive_field=_theoretical_field(context.encoder.network))
        pictures = [
            Chart.drawn('cosines', partial(cosines_chart, within, between), 'Cosines within and between pictures'),
            Chart.drawn(
                'field', partial(effective_field_chart, field.numpy(), center, radii), 'Effective receptive field'
            ),
            local_gallery(context.encoder, test, self.num_pictures, context.seed),
        ]
        # UMAP needs a few neighbors.
        if min(self.max_embedded, len(test)) > 3:
            pictures.append(self._embed(context, test))
        return ProtocolResult(scores, card, pictures)

    def _probe(self, context: EvaluationContext, train: Dataset, test: Dataset) -> dict[str, Score]:
        """Accuracy of single places, averaged over them, and of their mean."""
        print_log('Locality: what single places know of the class', logger='current')
        labels = class_labels(train)
        drawn = map_pictures(context, train, partial(_draw_place, context.encoder, context.seed), 'places')['place']
        places, means = (
            FrozenClassifiers(features.to(context.device), labels, penalty=self.penalty)
            for features in (drawn, context.features(train, 'patch'))
        )
        judged = map_pictures(context, test, partial(_judge_places, context.encoder, places), 'judged')
        logits = means.logits(context.features(test, 'patch').to(context.device))
        right = dict(single_place=judged['right'].mean(1), mean_of_places=logits.argmax(1).cpu() == class_labels(test))
        identities = read_labels(test, 'identity')
        return {
            name: Score(float(each.double().mean()), _mean_error(each.double().numpy(), identities))
            for name, each in right.items()
        }

    def _embed(self, context: EvaluationContext, test: Dataset) -> Chart:
        print_log('Locality: picture of the embedding', logger='current')
        dataset = random_subset(test, self.max_embedded, context.seed)
        points = to_plane(context.features(dataset), context.seed)
        draw = partial(embedding_chart, points, class_labels(dataset).numpy(), class_names(dataset))
        return Chart.drawn('embedding', draw, 'UMAP of the global representations, coloured by class')


@torch.no_grad()
def _measure(encoder: FrozenEncoder, batch: dict) -> dict[str, Tensor]:
    readout = read_out(encoder.network, encoder.data_preprocessor(batch, False)['inputs'])
    local, whole = readout.local_map.float(), readout.global_features.float()
    measures = dict(redundancy=redundancy(local)[:, None], local=normalize(local, dim=1).mean((2, 3)))
    # A head after the pooling may lead to a space of another size.
    if local.shape[1] == whole.shape[1]:
        measures.update(local_global=local_global_similarity(local, whole)[:, None], whole=normalize(whole, dim=1))
    return measures


@torch.no_grad()
def _draw_place(encoder: FrozenEncoder, seed: int, batch: dict) -> dict[str, Tensor]:
    """A random place of every map, (B, D), chosen by the seed and the picture."""
    places = encoder.read(batch).local_map.float().flatten(2)
    drawn = [int(picture_generator(picture.numpy(), seed).integers(places.shape[2])) for picture in batch['inputs']]
    return dict(place=places[torch.arange(len(places)), :, drawn])


@torch.no_grad()
def _judge_places(encoder: FrozenEncoder, probe: FrozenClassifiers, batch: dict) -> dict[str, Tensor]:
    """Whether every place is judged right, (B, places)."""
    places = encoder.read(batch).local_map.float().flatten(2).transpose(1, 2)
    labels = batch_labels(batch).to(places.device)
    return dict(right=probe.logits(places).argmax(2) == labels[:, None])


def _cosines(measured: Mapping[str, Tensor], dataset: Dataset) -> tuple[dict[str, Score], dict, dict]:
    """Scores, figures of every picture, and the same between different pictures."""
    partners = dict(redundancy='local', local_global='whole')
    within = {name: measured[name][:, 0].double().numpy() for name in partners if name in measured}
    local = measured['local'].double()
    between = {name: float(cosine_between_images(local, measured[partners[name]].double())) for name in within}
    identities = read_labels(dataset, 'identity')
    scores = {}
    for name, values in within.items():
        scores[name] = Score(float(values.mean()), _mean_error(values, identities), percent=False)
        scores[f'{name}_between_images'] = Score(between[name], percent=False)
    return scores, within, between


def _mean_error(values: np.ndarray, identities: np.ndarray | None) -> float:
    """Standard error of a mean over pictures: over objects where they are known."""
    _, members = np.unique(np.arange(len(values)) if identities is None else identities, return_inverse=True)
    return clustered_standard_error(np.bincount(members, weights=values), np.bincount(members))


def _gradients(encoder: FrozenEncoder, batch: dict) -> dict[str, Tensor]:
    images = encoder.data_preprocessor(batch, False)['inputs']
    gradients = input_gradients(lambda pixels: read_out(encoder.network, pixels).local_map, images)
    return dict(gradients=gradients.flatten(1))


def _theoretical_field(network: nn.Module) -> dict | None:
    """Size and jump in pixels, or None for networks that see everything or are not understood."""
    try:
        return receptive_field(network)._asdict()
    except Exception:  # tracing runs any network's own code on symbols, and whatever that raises
        return None
