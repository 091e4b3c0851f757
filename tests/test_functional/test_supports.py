"""Selection of support embeddings against loops and the released gather-and-search."""

import pytest
import torch
from reference.sop_released import build_task
from torch.nn import functional as F

from mm_sop.functional import sample_anchors, select_supports, supports


def random_bank(num_rows=40, width=8, dtype=torch.float64):
    return F.normalize(torch.randn(num_rows, width, dtype=dtype), dim=1)


def loop_selection(bank, anchors, num_supports, anchor_weight, excluded):
    """Rows and weights of every prototype by sorting all cosines of every anchor."""
    tasks = []
    for task_anchors, task_excluded in zip(anchors.tolist(), excluded.tolist(), strict=True):
        prototypes = []
        for anchor in task_anchors:
            cosines = []
            for row in range(len(bank)):
                if row not in task_excluded:
                    products = [float(x) * float(y) for x, y in zip(bank[anchor], bank[row], strict=True)]
                    cosines.append((sum(products), row))
            nearest = sorted(cosines, reverse=True)[:num_supports]
            prototypes.append([(row, min(max(cosine, 0), 1)) for cosine, row in nearest] + [(anchor, anchor_weight)])
        tasks.append(prototypes)
    table = torch.tensor(tasks, dtype=torch.float64)
    return table[..., 0].long(), table[..., 1]


@pytest.mark.parametrize('num_rows', [32 * 40, 32 * 40 + 7])
def test_search_through_chunks_equals_sorting_all_cosines(num_rows):
    bank = random_bank(num_rows, width=4)
    # Neighbors of an anchor: two in one chunk, one in the last columns, one excluded from a task.
    bank[[40, 200, 120, num_rows - 1]] = F.normalize(bank[:1] + 1e-3 * torch.randn(4, 4, dtype=torch.float64), dim=1)
    anchors = torch.tensor([[0, 5, 300], [700, 0, 9]])
    excluded = torch.cat([anchors, torch.tensor([[40, 1000], [60, 1001]])], dim=1)
    rows, weights = select_supports(bank, anchors, 6, anchor_weight=0.8, excluded=excluded)
    cosines = (bank[anchors] @ bank.T).scatter(2, excluded.unsqueeze(1).expand(-1, 3, -1), -2)
    expected = cosines.sort(dim=-1, descending=True)
    assert torch.equal(rows[..., :-1], expected.indices[..., :6])
    torch.testing.assert_close(weights[..., :-1], expected.values[..., :6].clamp(0, 1))


@pytest.mark.parametrize('num_supports', [0, 1, 3])
@pytest.mark.parametrize(('num_tasks', 'num_anchors'), [(1, 2), (3, 6)])
def test_equals_a_loop_over_all_rows(num_tasks, num_anchors, num_supports):
    bank = random_bank()
    anchors = sample_anchors(len(bank), num_anchors, num_tasks)
    rows, weights = select_supports(bank, anchors, num_supports, anchor_weight=0.8)
    expected_rows, expected_weights = loop_selection(bank, anchors, num_supports, 0.8, anchors)
    assert torch.equal(rows, expected_rows)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize('num_supports', [0, 4])
def test_equals_the_release_for_the_same_permutations(num_supports):
    bank = random_bank(64)
    permutations = torch.stack([torch.randperm(64) for _ in range(3)])
    rows, weights = select_supports(bank, permutations[:, :10], num_supports)
    for t, permutation in enumerate(permutations):
        task = build_task(bank.T.contiguous(), permutation, 10, num_supports)
        assert torch.equal(rows[t], task.rows)
        torch.testing.assert_close(weights[t], task.weights)


def test_thinning_before_the_search_equals_the_release_thinning_after_it():
    bank = random_bank(64)
    permutation = torch.randperm(64)
    anchors, kept = permutation[:12], torch.tensor([7, 0, 10, 3, 4, 11])
    task = build_task(bank.T.contiguous(), permutation, 12, 5, low_energy=True, kept=kept)
    rows, weights = select_supports(bank, anchors[kept][None], 5, excluded=anchors[None])
    assert torch.equal(rows[0], task.rows)
    torch.testing.assert_close(weights[0], task.weights)


def test_anchors_come_last_and_support_no_anchor_of_their_task():
    bank = random_bank(60)
    anchors = sample_anchors(60, 20, num_tasks=4)
    rows, weights = select_supports(bank, anchors, 40, anchor_weight=0.7)
    assert torch.equal(rows[..., -1], anchors)
    assert (weights[..., -1] == 0.7).all()
    for task_anchors, task_rows in zip(anchors, rows, strict=True):
        others = set(range(60)) - set(task_anchors.tolist())
        assert all(set(supports.tolist()) == others for supports in task_rows[:, :-1])


def test_supports_are_sorted_by_falling_cosine():
    bank = random_bank(200)
    rows, weights = select_supports(bank, sample_anchors(200, 30, 2), 9)
    cosines = (bank[rows[..., :-1]] * bank[rows[..., -1:]]).sum(-1)
    assert (cosines.diff(dim=-1) <= 1e-12).all()
    torch.testing.assert_close(weights[..., :-1], cosines.clamp(0, 1))


def test_copies_of_an_anchor_are_its_first_supports():
    bank = random_bank(20)
    bank[[5, 9]] = bank[2].clone()
    rows, weights = select_supports(bank, torch.tensor([[2, 0]]), 3)
    assert set(rows[0, 0, :2].tolist()) == {5, 9}
    torch.testing.assert_close(weights[0, 0, :2], torch.ones(2, dtype=torch.float64))


def test_excluded_copies_are_no_supports():
    bank = random_bank(20)
    bank[[5, 9]] = bank[2].clone()
    rows, _ = select_supports(bank, torch.tensor([[2]]), 3, excluded=torch.tensor([[2, 5, 9]]))
    assert not {2, 5, 9} & set(rows[0, 0, :-1].tolist())


def test_votes_stay_between_zero_and_one():
    opposite = torch.tensor([[1.0, 0], [-1, 0], [-0.8, 0.6]])
    rows, weights = select_supports(opposite, torch.tensor([[0]]), 2)
    assert rows.tolist() == [[[2, 1, 0]]]
    torch.testing.assert_close(weights, torch.tensor([[[0, 0, 0.9]]]))
    too_long = torch.tensor([[1.01, 0], [1.02, 0], [0.5, 0.5]])
    assert select_supports(too_long, torch.tensor([[0]]), 1)[1][0, 0, 0] == 1


@pytest.mark.parametrize('block', [1, 3 * 50, 2 * 3 * 50 + 1])
def test_blocks_of_anchors_change_nothing(monkeypatch, block):
    bank = random_bank(50)
    anchors = sample_anchors(50, 7, num_tasks=3)
    rows, weights = select_supports(bank, anchors, 4)
    monkeypatch.setattr(supports, '_BLOCK_ON_CPU', block)
    rows_in_blocks, weights_in_blocks = select_supports(bank, anchors, 4)
    assert torch.equal(rows, rows_in_blocks)
    torch.testing.assert_close(weights, weights_in_blocks)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_search_runs_in_single_precision_whatever_the_autocast(dtype):
    bank = random_bank(300, 32).to(dtype)
    anchors = sample_anchors(300, 20, num_tasks=2)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rows, weights = select_supports(bank, anchors, 8)
    expected_rows, expected_weights = select_supports(bank.double(), anchors, 8)
    assert weights.dtype == torch.float32
    assert torch.equal(rows, expected_rows)
    torch.testing.assert_close(weights, expected_weights.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize('num_supports', [0, 2])
def test_selection_is_constant(num_supports):
    bank = random_bank().requires_grad_()
    rows, weights = select_supports(bank, torch.tensor([[0, 1]]), num_supports)
    assert not weights.requires_grad
    assert not rows.requires_grad


def test_whole_bank_may_be_used():
    rows, _ = select_supports(random_bank(10), torch.tensor([[3, 4, 5]]), 7)
    assert rows.shape == (1, 3, 8)


def test_too_small_bank_is_explained():
    with pytest.raises(ValueError, match='3 anchors and 8 supports do not fit into a bank of 10 rows: enlarge'):
        select_supports(random_bank(10), torch.tensor([[3, 4, 5]]), 8)


@pytest.mark.parametrize('num_supports', [2])
@pytest.mark.parametrize('anchor', [10, -1])
def test_anchors_out_of_range_are_refused(anchor, num_supports):
    with pytest.raises((IndexError, RuntimeError), match='out of (range|bounds)'):
        select_supports(random_bank(10), torch.tensor([[0, anchor]]), num_supports)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_supports=-1), 'num_supports must not be negative, got -1'),
        (dict(anchor_weight=1.5), r'anchor_weight must be in \[0, 1\], got 1.5'),
        (dict(anchors=torch.tensor([0, 1])), r'anchors \(T, M\)'),
        (dict(bank=torch.randn(10)), r'bank \(N, d\)'),
        (dict(excluded=torch.tensor([[0], [1]])), 'excluded has 2 tasks, anchors have 1'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    defaults = dict(bank=random_bank(10), anchors=torch.tensor([[0, 1]]), num_supports=2)
    with pytest.raises(ValueError, match=message):
        select_supports(**(defaults | arguments))
