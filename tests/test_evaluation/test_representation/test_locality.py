"""Locality protocol on folders with images of three colors."""

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from testing.distributed import run_distributed
from testing.evaluation_encoders import make_context, record_measurements, run
from torch.nn.functional import normalize

from mm_sop.datasets.transforms.perturb import image_generator
from mm_sop.evaluation.classification.logistic import FrozenClassifiers
from mm_sop.evaluation.representation.locality import LocalityProtocol, principal_maps, to_plane
from mm_sop.models.utils.readout import read_out
from mm_sop.report.evaluation import draw

QUICK = dict(max_images=8, max_gradients=3, max_embedded=6, num_images=2)


def run_quickly(context, **options):
    return run(LocalityProtocol(**dict(QUICK, **options)), context)


@pytest.mark.parametrize('kind', ['resnet', 'transformer'])
def test_cosines_equal_slow_ones(data, tmp_path, kind):
    context = make_context(data, tmp_path, kind)
    result = run_quickly(context, max_embedded=0)
    test = LocalityProtocol(**QUICK).find_data(context)['test']
    batch = default_collate([test[row] for row in range(8)])
    with torch.no_grad():
        readout = read_out(context.encoder.network, context.encoder.data_preprocessor(batch, False)['inputs'])
    cells = normalize(readout.local_map, dim=1).flatten(2).transpose(1, 2)
    wholes = normalize(readout.global_features, dim=1)
    within, to_whole, between, to_others = [], [], [], []
    for i in range(8):
        to_whole.append(float((cells[i] @ wholes[i]).mean()))
        cosines = cells[i] @ cells[i].T
        within += [float(cosines[a, b]) for a in range(len(cosines)) for b in range(len(cosines)) if a != b] or [1.0]
        between += [float((cells[i] @ cells[j].T).mean()) for j in range(8) if j != i]
        to_others += [float((cells[i] @ wholes[j]).mean()) for j in range(8) if j != i]
    expected = dict(
        redundancy=within,
        redundancy_between_images=between,
        local_global=to_whole,
        local_global_between_images=to_others,
    )
    for name, values in expected.items():
        assert result.scores[name].value == pytest.approx(np.mean(values), abs=1e-4)


def test_images_radii_and_theoretical_field(data, tmp_path):
    result = run_quickly(make_context(data, tmp_path))
    assert [image.name for image in draw('locality', result.data)] == ['cosines', 'field', 'maps', 'embedding']
    assert 0 < result.scores['field_radius_50'].value < result.scores['field_radius_90'].value < 32
    assert result.card['receptive_field'] == dict(size=435, jump=32)
    assert run_quickly(make_context(data, tmp_path, 'transformer')).card['receptive_field'] is None


@pytest.mark.parametrize('kind', ['resnet', 'transformer'])
def test_single_positions_are_judged_one_by_one(data, tmp_path, kind, monkeypatch):
    context = make_context(data, tmp_path, kind)
    measured = record_measurements(context, monkeypatch)
    result = run_quickly(context, max_embedded=0, max_images=None)
    protocol = LocalityProtocol(**dict(QUICK, max_images=None))
    encode = {}
    for name, dataset in protocol.find_data(context).items():
        samples = [dataset[row] for row in range(len(dataset))]
        with torch.no_grad():
            maps = context.encoder.read(default_collate(samples)).local_map
        labels = torch.cat([sample['data_samples'].gt_label for sample in samples])
        encode[name] = maps, labels, [sample['inputs'] for sample in samples]
    maps, labels, images = encode['train']
    height, width = maps.shape[2:]
    drawn = []
    for local_map, image in zip(maps, images, strict=True):
        position = int(image_generator(image.numpy(), 0).integers(height * width))
        drawn.append(local_map[:, position // width, position % width])
    torch.testing.assert_close(measured['positions']['position'], torch.stack(drawn), atol=1e-5, rtol=1e-4)
    single = FrozenClassifiers(torch.stack(drawn), labels)
    pooled = FrozenClassifiers(maps.mean((2, 3)), labels)
    right_positions, right_means = [], []
    for local_map, label in zip(*encode['test'][:2], strict=True):
        for row in range(height):
            for column in range(width):
                right_positions.append(int(single.logits(local_map[:, row, column]).argmax()) == label)
        right_means.append(int(pooled.logits(local_map.mean((1, 2))).argmax()) == label)
    # Both computations agree up to rounding, which may change a few close decisions.
    assert result.scores['single_position'].value == pytest.approx(
        np.mean(right_positions), abs=2 / len(right_positions)
    )
    assert result.scores['mean_of_positions'].value == pytest.approx(np.mean(right_means), abs=1e-6)


def test_principal_maps_show_the_parts():
    parts = torch.zeros(1, 6, 4, 4)
    parts[0, 0, :2], parts[0, 1, 2:, :2], parts[0, 2, 2:, 2:] = 3.0, 2.0, 1.0
    colors = principal_maps(parts + 0.001 * torch.rand(1, 6, 4, 4)).astype(int)[0, ..., :2]
    assert np.abs(colors[0, 0] - colors[1, 3]).max() < 8
    for other in (colors[3, 0], colors[3, 3]):
        assert np.abs(colors[0, 0] - other).max() > 100
    assert np.abs(colors[3, 0] - colors[3, 3]).max() > 100


def test_principal_maps_of_too_few_positions():
    colors = principal_maps(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert sorted(colors[:, 0, 0].tolist()) == [[0, 0, 0], [255, 0, 0]]


def test_plane_keeps_groups_apart():
    centers = torch.eye(3).repeat_interleave(10, 0)
    points = to_plane(centers + 0.02 * torch.rand(30, 3, generator=torch.Generator().manual_seed(0)))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(1) // 10 == np.arange(30) // 10).all()


def run_in_process(rank, world_size, data, work_dir):
    return {name: score.value for name, score in run_quickly(make_context(data, work_dir)).scores.items()}


def test_processes_agree_with_one(data, tmp_path):
    expected = run_in_process(0, 1, data, tmp_path / 'one')
    for scores in run_distributed(run_in_process, str(data), str(tmp_path / 'two')):
        assert scores == pytest.approx(expected, rel=1e-4)
