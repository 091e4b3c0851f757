import math

import pytest
import torch

from mm_sop.functional import alignment, effective_rank, lidar, rankme, uniformity
from mm_sop.functional import rank as rank_module


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(values, rows=12, columns=7):
    """A matrix with these singular values."""
    left, right = (torch.linalg.qr(random(side, side, seed=side))[0] for side in (rows, columns))
    count = len(values)
    return left[:, :count] @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right[:, :count].T


def slow_entropy_rank(values, epsilon):
    total = sum(values)
    probabilities = [value / total + epsilon for value in values]
    return math.exp(-sum(probability * math.log(probability) for probability in probabilities if probability > 0))


@pytest.mark.parametrize('epsilon', [1e-7, 1e-3])
def test_rankme_of_a_known_spectrum(epsilon):
    values = [5.0, 3.0, 1.0, 0.5]
    # The absent three of the seven singular values count with epsilon, as published.
    expected = slow_entropy_rank([*values, 0, 0, 0], epsilon)
    assert rankme(with_spectrum(values), epsilon) == pytest.approx(expected, rel=1e-9)


def test_flat_spectra_have_their_dimension():
    features = with_spectrum([2.0] * 4)
    assert effective_rank(features) == pytest.approx(4)
    assert rankme(features) == pytest.approx(4, rel=1e-4)
    assert effective_rank(with_spectrum([3.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(5, 3)) == 1


def test_effective_rank_has_no_epsilon():
    values = [4.0, 2.0, 0.25]
    assert effective_rank(with_spectrum(values)) == pytest.approx(slow_entropy_rank(values, 0))


def test_rank_ignores_rotation_scale_and_order():
    features = random(30, 6)
    rotated = 7 * features.flip(0) @ torch.linalg.qr(random(6, 6, seed=1))[0]
    assert rankme(rotated) == pytest.approx(rankme(features))


def slow_lidar(embeddings, delta, epsilon):
    """Matrices of the paper as unbiased estimates (stable-pretraining), sample by sample."""
    num_images, num_views, dim = embeddings.shape
    centers = [sum(embeddings[i, j] for j in range(num_views)) / num_views for i in range(num_images)]
    mean = sum(centers) / num_images
    between = sum(torch.outer(center - mean, center - mean) for center in centers) / (num_images - 1)
    within = delta * torch.eye(dim, dtype=torch.float64)
    for i in range(num_images):
        for j in range(num_views):
            offset = embeddings[i, j] - centers[i]
            within += torch.outer(offset, offset) / (num_images * (num_views - 1))
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ between @ root).clamp_min(0).tolist()
    return slow_entropy_rank(eigenvalues, epsilon)


@pytest.mark.parametrize('shape', [(9, 3, 4), (4, 5, 6)])
@pytest.mark.parametrize('delta', [1e-4, 0.5])
def test_lidar_is_that_of_the_paper(shape, delta):
    embeddings = random(shape[0], 1, shape[2]) * torch.linspace(1, 3, shape[2]) + 0.3 * random(*shape, seed=1)
    epsilon = 1e-8
    # Of fewer images than dimensions the absent eigenvalues count with epsilon only in the loop: below the tolerance.
    assert lidar(embeddings, delta, epsilon) == pytest.approx(slow_lidar(embeddings, delta, epsilon), rel=1e-5)


def test_lidar_counts_directions_that_tell_images_apart():
    centers = torch.cat([torch.eye(3), -torch.eye(3)]).double()[:, None] @ torch.eye(3, 5).double()
    noise = 0.1 * random(6, 40, 5)
    assert lidar(centers + noise - noise.mean(1, keepdim=True)) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize('block', [1, 2**27])
def test_uniformity_over_all_pairs(monkeypatch, block):
    monkeypatch.setattr(rank_module, '_DISTANCE_BLOCK', block)
    features = random(11, 3)
    rows = [row / row.norm() for row in features]
    potentials = [
        math.exp(-1.5 * float((rows[i] - rows[j]).square().sum())) for i in range(11) for j in range(11) if i != j
    ]
    assert uniformity(features, 1.5) == pytest.approx(math.log(sum(potentials) / len(potentials)))


def test_uniformity_has_its_limits():
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.tensor([[1.0, 0], [-2, 0]])) == pytest.approx(-8)


@pytest.mark.parametrize('exponent', [1.0, 2.0])
def test_alignment_of_pairs(exponent):
    first, second = random(8, 3), random(8, 3, seed=1)
    expected = (
        sum(float((a / a.norm() - b / b.norm()).norm()) ** exponent for a, b in zip(first, second, strict=True)) / 8
    )
    assert alignment(first, second, exponent) == pytest.approx(expected)
    assert alignment(first, 5 * first) == pytest.approx(0)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: rankme(torch.zeros(3)), r'expected features \(N, D\)'),
        (lambda: rankme(torch.tensor([[1.0, torch.nan]])), 'not finite'),
        (lambda: lidar(torch.zeros(3, 1, 4)), r'at least 2 images in 2 views, got \(3, 1, 4\)'),
        (lambda: lidar(torch.full((2, 2, 2), torch.inf)), 'not finite'),
        (lambda: uniformity(torch.ones(1, 4)), 'at least 2 features'),
        (lambda: uniformity(torch.full((3, 2), torch.nan)), 'not finite'),
        (lambda: alignment(torch.ones(3, 2), torch.ones(2, 2)), 'needs two views'),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
