import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from testing.distributed import run_distributed
from testing.search_assets import COLORS, color_encoder, write_image
from torch.nn.functional import normalize

from mm_sop.datasets.image_files import ImageFiles
from mm_sop.evaluation.context import EvaluationContext
from mm_sop.evaluation.features.extraction import resize_by
from mm_sop.evaluation.features.store import FeatureCache
from mm_sop.evaluation.retrieval.descriptors import Descriptor, count_above, count_distractors, describe

PIPELINE = [dict(type='LoadImage'), dict(type='PackInputs')]


def make_context(folder):
    return EvaluationContext(color_encoder(), folder, folder / 'work', FeatureCache(folder / 'cache'), num_workers=0)


@pytest.fixture
def images(tmp_path):
    for number in range(9):
        write_image(tmp_path / f'{number}.png', COLORS[number % 6], (48, 32), 60, number)
    return ImageFiles([tmp_path / f'{number}.png' for number in range(9)], PIPELINE)


@torch.no_grad()
def test_descriptor_is_the_mean_over_sizes(tmp_path, images):
    descriptor = Descriptor(('patch', 'gem'), (1.0, 2.0))
    found = describe(make_context(tmp_path), images, descriptor, {}, batch_size=2)
    for row, sample in zip(found, images, strict=True):
        image = (sample['inputs'].flip(0).float()[None] - 128) / 64
        parts = []
        for size in ((32, 48), (64, 96)):
            resized = torch.nn.functional.interpolate(image, size=size, mode='bilinear')
            cells = torch.nn.functional.avg_pool2d(resized, 8).flatten(2)[0]
            parts.append(torch.cat([cells.mean(1), cells.clamp(min=1e-6).pow(4).mean(1).pow(0.25)]))
        torch.testing.assert_close(row, normalize(parts[0] + parts[1], dim=0), atol=1e-5, rtol=1e-5)


def test_descriptors_are_cached_and_depend_on_the_settings(tmp_path, images, monkeypatch):
    context = make_context(tmp_path)
    first = describe(context, images, Descriptor(), {})
    monkeypatch.setattr(Descriptor, 'encode', lambda *args, **kwargs: pytest.fail('encoded twice'))
    assert torch.equal(describe(context, images, Descriptor(), {}), first)
    for changed in ((Descriptor(scales=(0.5,)), {}), (Descriptor(('gem',)), {}), (Descriptor(), dict(size=1))):
        with pytest.raises(pytest.fail.Exception, match='encoded twice'):
            describe(context, images, *changed)


def test_sides_are_multiples():
    images = torch.rand(1, 3, 40, 100)
    assert resize_by(images, 0.5).shape[2:] == (32, 48)
    assert resize_by(images, 2, 8).shape[2:] == (80, 200)
    even = torch.rand(1, 3, 48, 96)
    assert resize_by(even, 1.0) is even


def test_larger_entries_are_counted():
    others, own = torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[0.5, 1.0, 0.0, 0.3]])
    assert count_above(others, own).tolist() == [[1, 0, 3, 2]]


def distractor_counts(rank, world_size, folder):
    init_default_scope('mmpretrain')
    context = make_context(folder)
    images = ImageFiles(sorted(folder.glob('*.png')), PIPELINE)
    queries = normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    similarity = torch.linspace(-1, 1, 5).expand(4, 5)
    return count_distractors(context, images, Descriptor(), queries, similarity, block_size=2)


def test_streamed_distractors_equal_all_at_once(tmp_path, images):
    counts = distractor_counts(0, 1, tmp_path)
    features = describe(make_context(tmp_path), images, Descriptor(), {})
    queries = normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = ((queries @ features.T)[:, None] > torch.linspace(-1, 1, 5)[None, :, None]).sum(2)
    assert torch.equal(counts, expected) and len(np.unique(counts)) > 3
    assert all(torch.equal(part, expected) for part in run_distributed(distractor_counts, tmp_path))


@pytest.mark.parametrize(
    'settings, message', [(dict(parts=('cls',)), 'parts of a descriptor'), (dict(scales=(0,)), 'scales')]
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Descriptor(**settings)
