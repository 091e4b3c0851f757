import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from mm_sop.functional import grid_cells, local_global_similarity, redundancy, uniform_cells
from mm_sop.functional.local_global import cosine_between_images


def test_similarity_is_the_mean_cosine_of_cells_and_vector_with_its_gradients():
    local = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    slow = torch.stack(
        [sum(local[b, i] @ target[b] / local[b, i].norm() / target[b].norm() for i in range(5)) / 5 for b in range(3)]
    )
    fast = local_global_similarity(local, target)
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(
        torch.autograd.grad(fast.square().sum(), (local, target)),
        torch.autograd.grad(slow.square().sum(), (local, target)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_similarity_of_maps_permuted_cells_and_extremes():
    local, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4)
    cells = local.flatten(2).transpose(1, 2)
    expected = local_global_similarity(cells[:, torch.randperm(9)], target)
    torch.testing.assert_close(local_global_similarity(local, target), expected)
    torch.testing.assert_close(local_global_similarity(target[:, None].expand(-1, 9, -1), 3 * target), torch.ones(2))
    assert local_global_similarity(torch.zeros(2, 3, 4), target).eq(0).all()


def test_similarity_in_low_precision_is_computed_in_float32():
    local, target = torch.randn(4, 6, 32).bfloat16(), torch.randn(4, 32).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        similarity = local_global_similarity(local, target)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, local_global_similarity(local.float(), target.float()))


def test_similarity_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r'target \(B, d\), got \(2, 3, 4\) and \(2, 5\)'):
        local_global_similarity(torch.zeros(2, 3, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r'expected cells \(B, n, d\) or a map'):
        redundancy(torch.zeros(2, 3))


def test_redundancy_is_the_mean_cosine_of_different_cells():
    local_map = torch.randn(3, 6, 2, 4, dtype=torch.float64)
    cells = local_map.flatten(2).transpose(1, 2)
    pairs = [cosine_similarity(cells[:, i], cells[:, j], dim=-1) for i in range(8) for j in range(8) if i != j]
    torch.testing.assert_close(redundancy(local_map), torch.stack(pairs).mean(0))
    torch.testing.assert_close(redundancy(torch.ones(2, 3, 4, 4)), torch.ones(2))
    torch.testing.assert_close(redundancy(torch.eye(4)[None]), torch.zeros(1))
    assert redundancy(torch.randn(2, 3, 1, 1)).tolist() == [1, 1]


def test_redundancy_with_dead_cells():
    cells = torch.randn(2, 6, 5, dtype=torch.float64).relu() * torch.tensor([1.0, 0, 1, 1, 0, 1])[:, None]
    pairs = [cosine_similarity(cells[:, i], cells[:, j], dim=-1) for i in range(6) for j in range(6) if i != j]
    torch.testing.assert_close(redundancy(cells), torch.stack(pairs).mean(0))
    assert redundancy(torch.zeros(1, 4, 2)).tolist() == [0]


@pytest.mark.parametrize(('size', 'phases'), [((14, 14), 2), ((15, 16), 4), ((7, 20), 6)])
def test_grid_has_one_stride_and_reaches_every_cell(size, phases):
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60 * phases):
        positions = grid_cells(size, 49, generator)
        rows, columns = positions.view(7, 7) // size[1], positions.view(7, 7) % size[1]
        assert (rows.diff(dim=0) == size[0] // 7).all() and (columns.diff(dim=1) == size[1] // 7).all()
        assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
        seen.update(positions.tolist())
    assert seen == set(range(size[0] * size[1]))


def test_grid_without_generator_small_and_flat_maps():
    assert grid_cells((4, 4), 4).tolist() == [0, 2, 8, 10]
    assert grid_cells((7, 7), 49) is None
    assert uniform_cells((3, 3), 9, torch.Generator()) is None
    assert len(grid_cells((2, 30), 16)) == 2 * 4
    assert uniform_cells((4, 4), 4).tolist() == [0, 2, 8, 10]


def test_uniform_cells_are_distinct_and_fair():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(16)
    for _ in range(800):
        positions = uniform_cells((4, 4), 4, generator)
        assert len(set(positions.tolist())) == 4
        counts[positions] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 37.7


def test_cosine_between_images_equals_all_pairs_of_cells():
    local, whole = normalize(torch.randn(4, 3, 5, dtype=torch.float64), dim=2), torch.randn(4, 5, dtype=torch.float64)
    whole = normalize(whole, dim=1)
    cells, wholes = [], []
    for i in range(4):
        for j in range(4):
            if i != j:
                cells += [float(a @ b) for a in local[i] for b in local[j]]
                wholes += [float(a @ whole[j]) for a in local[i]]
    means = local.mean(1)
    assert float(cosine_between_images(means, means)) == pytest.approx(sum(cells) / len(cells))
    assert float(cosine_between_images(means, whole)) == pytest.approx(sum(wholes) / len(wholes))
