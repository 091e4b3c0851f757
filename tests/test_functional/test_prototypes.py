"""Probabilities over prototypes against loops, the dense vote of the release, and numerical gradients."""

import math

import pytest
import torch
from reference.sop_released import Task, contribution_matrix, probabilities
from torch.nn import functional as F

from mm_sop.functional import prototype_log_probs, prototypes, sample_anchors, select_supports


def make_problem(num_embeddings=5, num_prototypes=4, size=3, num_tasks=None, width=6, dtype=torch.float64):
    """Unit embeddings and members, and weights in (0, 1)."""
    tasks = () if num_tasks is None else (num_tasks,)
    embeddings = F.normalize(torch.randn(num_embeddings, width, dtype=dtype), dim=-1)
    members = F.normalize(torch.randn(*tasks, num_prototypes, size, width, dtype=dtype), dim=-1)
    return embeddings, members, torch.rand(*tasks, num_prototypes, size, dtype=dtype)


def loop_log_probs(embeddings, members, weights, temperature):
    """``log(softmax(u D^T / tau) Y)`` element by element for one task."""
    num_prototypes = len(members)
    result = []
    for embedding in embeddings.tolist():
        logits = {}
        for j, prototype in enumerate(members.tolist()):
            for r, member in enumerate(prototype):
                logits[j, r] = sum(x * y for x, y in zip(embedding, member, strict=True)) / temperature
        peak = max(logits.values())
        total = sum(math.exp(logit - peak) for logit in logits.values())
        probs = [0.0] * num_prototypes
        for (i, r), logit in logits.items():
            weight = weights[i, r].item()
            for j in range(num_prototypes):
                vote = weight if i == j else (1 - weight) / (num_prototypes - 1)
                probs[j] += math.exp(logit - peak) / total * vote
        result.append([math.log(prob) for prob in probs])
    return torch.tensor(result, dtype=torch.float64)


def dense_log_probs(embeddings, members, weights, temperature):
    """The release's dense vote, differentiable."""
    task = Task(members.flatten(0, 1), contribution_matrix(weights), rows=None, weights=weights)
    return probabilities(embeddings, task, temperature).log()


def gradient(log_probs, embeddings, cotangent):
    (result,) = torch.autograd.grad((log_probs * cotangent).sum(), embeddings)
    return result


@pytest.mark.parametrize('temperature', [0.01, 0.04, 0.1, 1])
@pytest.mark.parametrize(('num_prototypes', 'size'), [(2, 1), (2, 3), (5, 1), (4, 9)])
def test_equals_loops_and_the_dense_vote(num_prototypes, size, temperature):
    embeddings, members, weights = make_problem(num_prototypes=num_prototypes, size=size)
    log_probs = prototype_log_probs(embeddings, members, weights, temperature)
    torch.testing.assert_close(log_probs, loop_log_probs(embeddings, members, weights, temperature))
    torch.testing.assert_close(log_probs, dense_log_probs(embeddings, members, weights, temperature))


@pytest.mark.parametrize('num_supports', [0, 8])
def test_equals_the_dense_vote_in_single_precision(num_supports):
    bank = F.normalize(torch.randn(1000, 64), dim=1)
    rows, weights = select_supports(bank, sample_anchors(1000, 32), num_supports)
    embeddings = F.normalize(bank[:16] + 0.1 * torch.randn(16, 64), dim=1)
    log_probs = prototype_log_probs(embeddings, bank[rows[0]], weights[0], 0.1)
    expected = dense_log_probs(embeddings, bank[rows[0]], weights[0], 0.1)
    torch.testing.assert_close(log_probs.exp(), expected.exp(), rtol=0, atol=1e-6)


@pytest.mark.parametrize('temperature', [0.04, 0.1, 1])
@pytest.mark.parametrize('size', [1, 4])
def test_gradient_equals_the_dense_vote(size, temperature):
    embeddings, members, weights = make_problem(size=size)
    embeddings.requires_grad_()
    cotangent = torch.randn(len(embeddings), len(members), dtype=torch.float64)
    result = gradient(prototype_log_probs(embeddings, members, weights, temperature), embeddings, cotangent)
    expected = gradient(dense_log_probs(embeddings, members, weights, temperature), embeddings, cotangent)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize('num_tasks', [None, 1, 3])
def test_gradient_equals_finite_differences(num_tasks):
    embeddings, members, weights = make_problem(num_tasks=num_tasks)

    def log_probs(embeddings):
        return prototype_log_probs(embeddings, members, weights, 0.2)

    assert torch.autograd.gradcheck(log_probs, embeddings.requires_grad_())


def test_rows_are_distributions():
    embeddings, members, weights = make_problem(num_embeddings=20, num_prototypes=7, num_tasks=2)
    total = prototype_log_probs(embeddings, members, weights, 0.05).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_tasks_are_separate():
    embeddings, members, weights = make_problem(num_tasks=3)
    embeddings.requires_grad_()
    cotangent = torch.randn(3, len(embeddings), members.shape[1], dtype=torch.float64)
    together = prototype_log_probs(embeddings, members, weights, 0.1)
    alone = torch.stack([prototype_log_probs(embeddings, *task, 0.1) for task in zip(members, weights, strict=True)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(gradient(together, embeddings, cotangent), gradient(alone, embeddings, cotangent))


def test_anchors_alone_without_smoothing_are_a_plain_softmax():
    embeddings, members, _ = make_problem(num_prototypes=6, size=1)
    log_probs = prototype_log_probs(embeddings, members, torch.ones(6, 1), 0.1)
    torch.testing.assert_close(log_probs, (embeddings @ members.squeeze(1).T / 0.1).log_softmax(-1))


def test_anchors_alone_are_a_smoothed_softmax():
    embeddings, members, _ = make_problem(num_prototypes=6, size=1)
    probs = prototype_log_probs(embeddings, members, torch.full((6, 1), 0.9, dtype=torch.float64), 0.1).exp()
    softmax = (embeddings @ members.squeeze(1).T / 0.1).softmax(-1)
    torch.testing.assert_close(probs, softmax * (0.9 - 0.1 / 5) + 0.1 / 5)


def test_equal_members_with_equal_weights_change_nothing():
    embeddings, members, weights = make_problem(size=1)
    repeated = prototype_log_probs(embeddings, members.repeat(1, 4, 1), weights.repeat(1, 4), 0.1)
    torch.testing.assert_close(repeated, prototype_log_probs(embeddings, members, weights, 0.1))


@pytest.mark.parametrize('num_tasks', [None, 2])
@pytest.mark.parametrize('prototypes_per_block', [1, 2, 3, 7])
def test_blocks_of_prototypes_change_nothing(monkeypatch, prototypes_per_block, num_tasks):
    embeddings, members, weights = make_problem(num_prototypes=7, num_tasks=num_tasks)
    embeddings.requires_grad_()
    whole = prototype_log_probs(embeddings, members, weights, 0.02)
    cotangent = torch.randn_like(whole)
    expected = gradient(whole, embeddings, cotangent)
    block = (num_tasks or 1) * len(embeddings) * weights.shape[-1] * prototypes_per_block
    monkeypatch.setattr(prototypes, '_LOGIT_BLOCK', block)
    streamed = prototype_log_probs(embeddings, members, weights, 0.02)
    torch.testing.assert_close(streamed, whole)
    torch.testing.assert_close(gradient(streamed, embeddings, cotangent), expected)


@pytest.mark.parametrize('block', [1, 2**24])
def test_no_embeddings_give_no_rows(monkeypatch, block):
    monkeypatch.setattr(prototypes, '_LOGIT_BLOCK', block)
    _, members, weights = make_problem(num_tasks=2)
    embeddings = torch.empty(0, members.shape[-1], requires_grad=True)
    log_probs = prototype_log_probs(embeddings, members, weights, 0.1)
    assert log_probs.shape == (2, 0, members.shape[1])
    log_probs.sum().backward()
    assert embeddings.grad.shape == embeddings.shape


@pytest.mark.parametrize('temperature', [0.01, 1])
@pytest.mark.parametrize(('weight', 'smallest'), [(0.0, 1e-3), (0.5, 1e-30), (1.0, 1e-30)])
def test_extreme_weights_and_temperatures_in_single_precision(weight, smallest, temperature):
    embeddings, members, weights = make_problem(num_embeddings=40, num_prototypes=8, width=3, dtype=torch.float32)
    weights.fill_(weight)
    embeddings.requires_grad_()
    exact = embeddings.detach().double().requires_grad_()
    log_probs = prototype_log_probs(embeddings, members, weights, temperature)
    expected = dense_log_probs(exact, members.double(), weights.double(), temperature)
    safe = expected > math.log(smallest)
    torch.testing.assert_close(log_probs[safe].double(), expected[safe], rtol=1e-4, atol=1e-4)
    assert log_probs.isfinite().all()
    assert (log_probs[~safe] < math.log(2 * smallest)).all()
    (result,) = torch.autograd.grad(log_probs[safe].sum(), embeddings, retain_graph=True)
    (target,) = torch.autograd.grad(expected[safe].sum(), exact)
    torch.testing.assert_close(result.double(), target, rtol=1e-3, atol=1e-3 / temperature)
    (result,) = torch.autograd.grad(log_probs.sum(), embeddings)
    assert result.isfinite().all()


def test_supports_that_copy_their_anchor_take_nothing_from_the_others():
    anchors = torch.eye(4).unsqueeze(1)
    members, weights = anchors.repeat(1, 9, 1), torch.ones(4, 9)
    log_probs = prototype_log_probs(anchors[:, 0], members, weights, 0.03)
    torch.testing.assert_close(log_probs, (torch.eye(4) / 0.03).log_softmax(-1))


def test_cosines_above_one_and_opposite_members_are_no_trouble():
    embeddings = torch.tensor([[1.0, 0.0], [-1.01, 0.0]], requires_grad=True)
    members = torch.tensor([[[1.02, 0.0], [1.0, 0.0]], [[-1.02, 0.0], [0.0, 1.0]]])
    weights = torch.tensor([[1.0, 0.9], [0.0, 0.9]])
    log_probs = prototype_log_probs(embeddings, members, weights, 0.01)
    log_probs.sum().backward()
    expected = dense_log_probs(embeddings.detach().double(), members.double(), weights.double(), 0.01)
    representable = expected > -80
    torch.testing.assert_close(log_probs[representable].double(), expected[representable], rtol=1e-4, atol=1e-4)
    assert log_probs.isfinite().all()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_computed_in_single_whatever_the_autocast(dtype):
    embeddings, members, weights = (tensor.to(dtype) for tensor in make_problem(num_tasks=2))
    embeddings.requires_grad_()
    single = embeddings.detach().float().requires_grad_()
    expected = prototype_log_probs(single, members.float(), weights.float(), 0.04)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        log_probs = prototype_log_probs(embeddings, members, weights, 0.04)
    assert log_probs.dtype == torch.float32
    assert torch.equal(log_probs, expected)
    cotangent = torch.randn_like(expected)
    result = gradient(log_probs, embeddings, cotangent)
    assert torch.equal(result, gradient(expected, single, cotangent).to(dtype))


def test_members_and_weights_are_constants():
    embeddings, members, weights = (tensor.requires_grad_() for tensor in make_problem())
    prototype_log_probs(embeddings, members, weights, 0.1).sum().backward()
    assert embeddings.grad is not None
    assert members.grad is None
    assert weights.grad is None
    assert not prototype_log_probs(embeddings.detach(), members, weights, 0.1).requires_grad


def test_inputs_are_left_unchanged():
    problem = make_problem(num_tasks=2)
    copies = [tensor.clone() for tensor in problem]
    problem[0].requires_grad_()
    prototype_log_probs(*problem, 0.1).sum().backward()
    assert all(map(torch.equal, problem, copies))


@pytest.mark.parametrize(
    ('num_prototypes', 'floor'), [(32, 0.668), (64, 0.739), (512, 0.949), (1024, 1.018), (4096, 1.157)]
)
def test_cross_entropy_cannot_fall_below_the_floor_of_smoothing(num_prototypes, floor):
    members = torch.eye(num_prototypes, dtype=torch.float64).unsqueeze(1)
    weights = torch.full((num_prototypes, 1), 0.9, dtype=torch.float64)
    log_probs = prototype_log_probs(members[0], members, weights, 0.01)
    assert -(log_probs.exp() * log_probs).sum().item() == pytest.approx(floor, abs=5e-4)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(members=torch.zeros(4, 3, 7)), r'members \(M, c, d\)'),
        (dict(members=torch.zeros(4, 6)), r'members \(M, c, d\)'),
        (dict(embeddings=torch.zeros(6)), r'embeddings \(n, d\)'),
        (dict(weights=torch.zeros(4, 2)), r'weights \(4, 2\) do not match members \(4, 3, 6\)'),
        (dict(members=torch.zeros(1, 3, 6), weights=torch.zeros(1, 3)), 'at least 2 prototypes'),
        (dict(temperature=0), 'temperature must be positive, got 0'),
        (dict(temperature=float('nan')), 'temperature must be positive, got nan'),
    ],
)
def test_bad_arguments_are_named(change, message):
    embeddings, members, weights = make_problem()
    arguments = dict(embeddings=embeddings, members=members, weights=weights, temperature=0.1)
    with pytest.raises(ValueError, match=message):
        prototype_log_probs(**(arguments | change))
