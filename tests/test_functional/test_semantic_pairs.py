"""Mining of semantic pairs against loops over all pairs."""

import pytest
import torch

from mm_sop.functional.neighbors import pair_cosines, search_in_band
from mm_sop.functional.semantic_pairs import known_positives, mine_semantic_pairs, select_pairs, suggest_lower_bound


def slow_pairs(features, lower, upper, max_per_anchor, max_partner_uses, mutual=False):
    features = features.double()
    norms = features.norm(dim=1)
    lower, upper = (float(torch.tensor(bound)) for bound in (lower, upper))
    cosines, choices = {}, []
    for i in range(len(features)):
        found = []
        for j in range(len(features)):
            if i != j and norms[i] > 0 and norms[j] > 0:
                cosine = float((features[i] @ features[j] / (norms[i] * norms[j])).float())
                cosines[i, j] = cosine
                if lower <= cosine <= upper:
                    found.append((-cosine, j))
        choices += [(i, j) for _, j in sorted(found)[:max_per_anchor]]
    if mutual:
        choices = [(i, j) for i, j in choices if (j, i) in choices]
    kept = set()
    for partner in range(len(features)):
        anchors = sorted((-cosines[i, j], i) for i, j in choices if j == partner)
        kept |= {(min(i, partner), max(i, partner)) for _, i in anchors[:max_partner_uses]}
    pairs = sorted(kept)
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2), torch.tensor([cosines[pair] for pair in pairs])


def clustered_features(count=70, dimensions=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(8, dimensions, generator=generator)
    choice = torch.randint(8, (count,), generator=generator)
    features = centers[choice] + 0.3 * torch.randn(count, dimensions, generator=generator)
    features[60:64] = features[:4] * 3  # exact duplicates, which also tie as partners of others
    features[69] = 0
    return features


@pytest.mark.parametrize('band', [(-1, 1), (0.5, 0.9), (0.9, 0.99), (0.95, 1.0), (0.999, 0.9999)])
@pytest.mark.parametrize('caps', [(1, 5), (1, 1), (2, None), (None, None), (None, 2)])
@pytest.mark.parametrize('mutual', [False, True])
def test_equals_the_loop_for_every_block_size(band, caps, mutual):
    features = clustered_features()
    expected_pairs, expected_cosines = slow_pairs(features, *band, *caps, mutual)
    for block_size in (7, 64, 70, 1000):
        pairs, cosines = mine_semantic_pairs(features, *band, *caps, block_size, mutual)
        assert torch.equal(pairs, expected_pairs)
        torch.testing.assert_close(cosines, expected_cosines, rtol=0, atol=1e-7)


def planted_clusters():
    """5 directions with 40 points, 10 exact duplicates of points, and 100 points far from everything."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(400, 400, generator=generator)).Q
    labels = torch.arange(5).repeat_interleave(40)
    # Two points of a cluster share a cosine of 1 / (1 + 0.03).
    points = basis[labels] + 0.03**0.5 * basis[5:205]
    duplicates = points[:10]
    isolated = basis[205:305]
    return torch.cat([points, duplicates, isolated]), torch.cat([labels, labels[:10], torch.arange(5, 105)])


@pytest.mark.parametrize('max_per_anchor', [1, None])
def test_planted_clusters(max_per_anchor):
    features, labels = planted_clusters()
    pairs, cosines = mine_semantic_pairs(features, 0.96, 0.99, max_per_anchor, None)
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
    assert set(pairs.flatten().tolist()) == set(range(210))
    duplicates = {(index, 200 + index) for index in range(10)}
    assert not duplicates & {tuple(pair) for pair in pairs.tolist()}
    torch.testing.assert_close(cosines, torch.full_like(cosines, 1 / 1.03), rtol=0, atol=1e-6)
    if max_per_anchor is None:
        # All pairs inside of the clusters but the duplicates.
        assert len(pairs) == 50 * 49 // 2 + 4 * (40 * 39 // 2) - 10


def test_permutation_permutes_indices_only():
    features = torch.randn(90, 8, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    pairs, cosines = mine_semantic_pairs(features, 0.2, 0.95, 1, 2, block_size=32)
    permuted, permuted_cosines = mine_semantic_pairs(features[order], 0.2, 0.95, 1, 2, block_size=32)
    found = {tuple(sorted(order[pair].tolist())): float(c) for pair, c in zip(permuted, permuted_cosines, strict=True)}
    assert found == {tuple(pair): float(c) for pair, c in zip(pairs.tolist(), cosines, strict=True)}


def test_caps_and_order():
    features = torch.randn(200, 4, generator=torch.Generator().manual_seed(4))
    pairs, cosines = mine_semantic_pairs(features, 0.0, 1.0, 1, 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert (pairs[1:] - pairs[:-1])[:, 0].min() >= 0
    assert len(pairs.unique(dim=0)) == len(pairs)
    # One choice of its own and two by others at most.
    assert pairs.flatten().bincount().max() <= 3
    assert torch.equal(cosines, pair_cosines(features, pairs))


def test_hub_serves_its_nearest_only():
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]) * torch.tensor([0, 1, -1, 1.05, -1.05])
    hub = torch.stack([angles.cos(), angles.sin()], dim=1)
    pairs, _ = mine_semantic_pairs(hub, 0.9, 0.9999, 1, 1)
    assert [0, 1] in pairs.tolist()
    assert [0, 2] not in pairs.tolist()


@pytest.mark.parametrize('seed', range(4))
def test_many_near_ties(seed):
    """Cosines that differ by less than the rounding of a product in fp32, around both bounds and in between."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(512, 512, generator=generator, dtype=torch.float64)).Q
    cosines = torch.tensor([0.8, 0.85, 0.9], dtype=torch.float64).repeat_interleave(30)
    cosines = cosines + torch.linspace(-1e-6, 1e-6, 30, dtype=torch.float64).repeat(3)
    points = cosines[:, None] * axes[0] + (1 - cosines**2).sqrt()[:, None] * axes[1:91]
    features = torch.cat([axes[:1], points]).float()
    for caps in ((1, None), (3, None), (None, None)):
        expected = slow_pairs(features, 0.8, 0.9, *caps)
        for block_size in (5, 91):
            assert torch.equal(mine_semantic_pairs(features, 0.8, 0.9, *caps, block_size)[0], expected[0])


@pytest.mark.parametrize('block_size', [16, 60])
def test_features_that_are_nearly_all_alike(block_size):
    """Most cosines are within the rounding of a product in fp32, some are equal."""
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(1, 128, generator=generator) + 2e-3 * torch.rand(60, 128, generator=generator)
    features[50:] = features[:10]
    middle = pair_cosines(features, torch.combinations(torch.arange(50))).quantile(torch.tensor([0.3, 0.7])).tolist()
    for band, caps in (((-1, 1), (1, 5)), (middle, (2, None))):
        expected = slow_pairs(features, *band, *caps)
        found = mine_semantic_pairs(features, *band, *caps, block_size)
        assert len(expected[0]) > 5
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_millions_of_equal_candidates():
    """More than are held at once: the first images are the neighbors of all, whichever block finds them."""
    found = search_in_band(torch.ones(1200, 1), 0.9, 1.0, 2, block_size=100)
    expected = torch.tensor([[0, 1]]).repeat(1200, 1)
    expected[0], expected[1] = torch.tensor([1, 2]), torch.tensor([0, 2])
    assert torch.equal(found.pairs[:, 0], torch.arange(1200).repeat_interleave(2))
    assert torch.equal(found.pairs[:, 1].view(1200, 2), expected)


@pytest.mark.parametrize('scale', [1e-100, 1e-46, 1e39, 1e100])
def test_length_of_features_does_not_matter(scale):
    features = clustered_features().double()
    expected = mine_semantic_pairs(features, 0.9, 0.99)
    found = mine_semantic_pairs(scale * features, 0.9, 0.99)
    assert len(expected[0])
    assert torch.equal(found[0], expected[0])


def test_lower_bound_only_removes():
    features = clustered_features()
    neighbors = search_in_band(features, -1.0, 0.97, 2, block_size=16)
    for lower in (0.3, 0.8, 0.95):
        direct = mine_semantic_pairs(features, lower, 0.97, 2, 2)
        later = select_pairs(neighbors, lower, 2)
        assert torch.equal(direct[0], later[0])
        assert torch.equal(direct[1], later[1])


def test_duplicates_are_pointed_out():
    features, _ = planted_clusters()
    neighbors = search_in_band(features, 0.96, 0.99)
    assert neighbors.nearest_rows[:10].tolist() == list(range(200, 210))
    assert (neighbors.nearest_rows >= 0).sum() == 20
    torch.testing.assert_close(neighbors.nearest[:10], torch.ones(10))


def test_precision_of_other_work_does_not_matter():
    features = clustered_features()
    expected = mine_semantic_pairs(features, 0.9, 0.99)
    torch.set_float32_matmul_precision('medium')
    try:
        with torch.autocast('cpu', torch.bfloat16):
            result = mine_semantic_pairs(features, 0.9, 0.99)
        assert torch.get_float32_matmul_precision() == 'medium'
    finally:
        torch.set_float32_matmul_precision('highest')
    assert torch.equal(expected[0], result[0])
    assert result[1].dtype == torch.float32


def test_features_in_half_precision():
    features = clustered_features().half()
    expected = mine_semantic_pairs(features.float(), 0.9, 0.99)
    assert torch.equal(mine_semantic_pairs(features, 0.9, 0.99)[0], expected[0])


def test_progress_and_bad_arguments():
    features, calls = clustered_features(), []
    mine_semantic_pairs(features, 0.9, 0.99, block_size=20, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for changes, message in [
        (dict(lower=0.99, upper=0.9), 'lower=0.99 and upper=0.9'),
        (dict(upper=1.5), 'upper=1.5'),
        (dict(max_per_anchor=0), 'max_per_anchor must be at least 1'),
        (dict(max_partner_uses=0), 'max_partner_uses must be at least 1'),
        (dict(block_size=0), 'block_size must be at least 1'),
        (dict(features=features[0]), r'expected features \(K, D\)'),
        (dict(features=features / 0), 'not finite'),
    ]:
        with pytest.raises(ValueError, match=message):
            mine_semantic_pairs(**{**dict(features=features, lower=0.9, upper=0.99), **changes})


@pytest.mark.parametrize('max_per_anchor', [1, None])
def test_nothing_to_find(max_per_anchor):
    for features in (torch.eye(5), torch.zeros(5, 3), torch.ones(1, 4)):
        pairs, cosines = mine_semantic_pairs(features, 0.5, 0.99, max_per_anchor)
        assert pairs.shape == (0, 2)
        assert cosines.shape == (0,)


def test_suggested_bound():
    chance = torch.linspace(0, 0.5, 10_001)
    mined = torch.linspace(0.6, 0.9, 101)
    # Few pairs: chance decides.
    assert suggest_lower_bound(chance, mined, 1000) == pytest.approx(0.49995)
    # 40 of 101 are allowed.
    bound = suggest_lower_bound(chance, mined, 80)
    assert (mined >= bound).sum() == 40
    # Equal values are left out together.
    assert (torch.full((50,), 0.8) >= suggest_lower_bound(chance, torch.full((50,), 0.8), 80)).sum() == 0


def test_known_positives():
    ids = torch.tensor([0, 0, 1, 2])
    partners = torch.tensor([[-1, -1], [-1, -1], [2, -1], [1, -1]])
    known = known_positives(ids, partners, torch.tensor([0, 0, 1, 2, -1]))
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0]]
    assert torch.equal(known, torch.tensor(expected, dtype=torch.bool))
