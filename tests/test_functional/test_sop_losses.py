"""The two losses against loops over pairs and tokens, and whole loss parts against the release."""

import pytest
import torch
from reference import sop_released
from reference.sop_released import ReleasedBank, ReleasedStep
from torch.nn import functional as F

from mm_sop.functional import prototype_log_probs, select_supports, sop_cls_loss, sop_mim_loss


def unit_rows(*shape, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def log_distributions(*shape):
    return torch.randn(*shape, dtype=torch.float64).log_softmax(-1)


def loop_cls_loss(student_log_probs, teacher_probs):
    """Mean over all pairs of different views and all images, and the number of pairs."""
    pairs = [(i, j) for i in range(len(student_log_probs)) for j in range(2) if i != j]
    total = 0.0
    for i, j in pairs:
        for log_probs, probs in zip(student_log_probs[i].tolist(), teacher_probs[j].tolist(), strict=True):
            total -= sum(q * log_p for q, log_p in zip(probs, log_probs, strict=True))
    return total / len(pairs) / student_log_probs.shape[1], len(pairs)


def loop_mim_loss(student_log_probs, teacher_probs, masks):
    """All tokens of both views, (2 B, L, M): mean over masked tokens of an image, then over all images."""
    total = 0.0
    for image in range(len(masks)):
        values = []
        for token in masks[image].nonzero().flatten().tolist():
            products = teacher_probs[image, token] * student_log_probs[image, token]
            values.append(-products.sum().item())
        total += sum(values) / max(1, len(values))
    return total / len(masks)


def image_weights(masks):
    """Weight of every masked token, in the order of ``tensor[masks]``."""
    per_image = 1 / (len(masks) * masks.sum(1).clamp(min=1).double())
    return per_image.unsqueeze(1).expand_as(masks)[masks]


@pytest.mark.parametrize(('num_views', 'num_pairs'), [(2, 2), (3, 4), (12, 22)])
def test_cls_loss_equals_the_double_loop(num_views, num_pairs):
    student, teacher = log_distributions(num_views, 3, 5), log_distributions(2, 3, 5).exp()
    expected, pairs = loop_cls_loss(student, teacher)
    assert pairs == num_pairs
    assert sop_cls_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    released = sop_released.cls_loss(student.exp().unbind(), teacher.unbind())
    torch.testing.assert_close(sop_cls_loss(student, teacher), released)


def test_losses_in_half_precision_stay_in_range():
    student, teacher = torch.randn(12, 400, 512).log_softmax(-1), torch.randn(2, 400, 512).softmax(-1)
    expected = sop_cls_loss(student, teacher)
    torch.testing.assert_close(sop_cls_loss(student.half(), teacher.half()), expected, rtol=1e-2, atol=0)
    tokens, weights = (student[0].half(), teacher[0].half()), torch.ones(400).half()
    expected = sop_mim_loss(student[0], teacher[0], torch.ones(400))
    torch.testing.assert_close(sop_mim_loss(*tokens, weights.float()), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize('num_views', [2, 5])
def test_cls_loss_gradient_reaches_the_students_alone(num_views):
    student = log_distributions(num_views, 3, 5).requires_grad_()
    teacher = log_distributions(2, 3, 5).exp().requires_grad_()
    sop_cls_loss(student, teacher).backward()
    assert teacher.grad is None
    released = sop_released.cls_loss(student.exp().unbind(), teacher.detach().unbind())
    torch.testing.assert_close(student.grad, torch.autograd.grad(released, student)[0])
    assert torch.autograd.gradcheck(lambda views: sop_cls_loss(views, teacher.detach()), student)


def test_cls_loss_is_blind_to_the_prediction_of_the_same_view():
    student, target = log_distributions(2, 3, 5), log_distributions(3, 5).exp()
    only_first = torch.stack([target, torch.zeros_like(target)])
    changed = student.clone()
    changed[0] = log_distributions(3, 5)
    torch.testing.assert_close(sop_cls_loss(student, only_first), sop_cls_loss(changed, only_first))


@pytest.mark.parametrize(
    ('student', 'teacher', 'message'),
    [
        ((1, 3, 5), (2, 3, 5), 'at least 2 student views and exactly 2 teacher views, got 1 and 2'),
        ((2, 3, 5), (3, 3, 5), 'exactly 2 teacher views, got 2 and 3'),
        ((2, 4, 5), (2, 3, 5), 'differ in batch or prototypes'),
        ((2, 3, 5), (2, 3, 6), 'differ in batch or prototypes'),
    ],
)
def test_cls_loss_names_unfit_shapes(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        sop_cls_loss(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize('masked', ['some', 'one image empty', 'all', 'one token'])
def test_mim_loss_of_gathered_tokens_equals_all_tokens(masked):
    masks = torch.rand(6, 7) < 0.4
    if masked == 'one image empty':
        masks[2] = False
    elif masked == 'all':
        masks[:] = True
    elif masked == 'one token':
        masks[:] = False
        masks[3, 1] = True
    student, teacher = log_distributions(6, 7, 4), log_distributions(6, 7, 4).exp()
    student.requires_grad_()
    loss = sop_mim_loss(student[masks], teacher[masks], image_weights(masks))
    released = sop_released.patch_loss(student.exp(), teacher, masks)
    assert loss.item() == pytest.approx(loop_mim_loss(student.detach(), teacher, masks), rel=1e-12)
    torch.testing.assert_close(loss, released)
    gradients = [torch.autograd.grad(value, student)[0] for value in (loss, released)]
    torch.testing.assert_close(*gradients)


def test_mim_loss_without_masked_tokens_is_zero_with_zero_gradients():
    tokens = unit_rows(6, 7, 8, dtype=torch.float32).requires_grad_()
    masks = torch.zeros(6, 7, dtype=torch.bool)
    members, weights = unit_rows(4, 1, 8, dtype=torch.float32), torch.full((4, 1), 0.9)
    student = prototype_log_probs(tokens[masks], members, weights, 0.1)
    teacher = prototype_log_probs(tokens.detach()[masks], members, weights, 0.04).exp()
    loss = sop_mim_loss(student, teacher, image_weights(masks).float())
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(tokens.grad, torch.zeros_like(tokens))


def test_mim_loss_gradient_reaches_the_student_alone():
    student, teacher = log_distributions(5, 4).requires_grad_(), log_distributions(5, 4).exp().requires_grad_()
    weights = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda rows: sop_mim_loss(rows, teacher.detach(), weights), student)
    sop_mim_loss(student, teacher, weights).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(('teacher', 'weights'), [((5, 3), (5,)), ((4, 4), (5,)), ((5, 4), (4,)), ((5, 4), (5, 1))])
def test_mim_loss_names_unfit_shapes(teacher, weights):
    with pytest.raises(ValueError, match=r'expected \(m, M\), \(m, M\) and \(m,\), got \(5, 4\)'):
        sop_mim_loss(torch.zeros(5, 4), torch.zeros(teacher), torch.zeros(weights))


def released_step(num_supports, low_energy, dtype=torch.float64):
    cls_bank = ReleasedBank(64, 8, 8, num_supports, num_tasks=3, low_energy=low_energy, dtype=dtype)
    patch_bank = ReleasedBank(48, 8, 10, 0, num_tasks=1, dtype=dtype)
    return ReleasedStep(None, None, cls_bank, patch_bank)


def draw_explicitly(bank, num_tasks, num_anchors, kept):
    permutations = torch.stack([torch.randperm(bank.columns.shape[1]) for _ in range(num_tasks)])
    anchors = permutations[:, :num_anchors]
    own = anchors if kept is None else anchors.gather(1, kept)
    return bank.draw(permutations, kept), own, anchors


@pytest.mark.parametrize('low_energy', [False, True])
@pytest.mark.parametrize('num_supports', [0, 3])
@pytest.mark.parametrize('num_local_views', [0, 4])
def test_cls_part_equals_the_release(num_local_views, num_supports, low_energy):
    step, batch = released_step(num_supports, low_energy), 5
    num_views = 2 + num_local_views
    student, teacher = unit_rows(num_views * batch, 8).requires_grad_(), unit_rows(2 * batch, 8)
    halved = low_energy and num_supports > 0
    kept = torch.stack([torch.randperm(8)[:4] for _ in range(3)]) if halved else None
    tasks, own, anchors = draw_explicitly(step.cls_bank, 3, 8, kept)
    expected = step.cls_part(student, teacher, tasks)

    bank = step.cls_bank.columns.T.contiguous()
    rows, weights = select_supports(bank, own, num_supports, excluded=anchors)
    student_log_probs = prototype_log_probs(student, bank[rows], weights, 0.1)
    teacher_probs = prototype_log_probs(teacher, bank[rows], weights, 0.04).exp()
    losses = [
        sop_cls_loss(log_probs.view(num_views, batch, -1), probs.view(2, batch, -1))
        for log_probs, probs in zip(student_log_probs, teacher_probs, strict=True)
    ]
    loss = sum(losses) / len(losses)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, student)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('empty', [False, True])
def test_patch_part_equals_the_release(empty):
    step, batch = released_step(0, False), 3
    student, teacher = unit_rows(2 * batch, 9, 8).requires_grad_(), unit_rows(2 * batch, 9, 8)
    masks = torch.rand(2 * batch, 9) < 0.3
    masks[1] = False
    masks &= not empty
    tasks, own, anchors = draw_explicitly(step.patch_bank, 1, 10, None)
    expected = step.patch_part(student, teacher, masks, tasks)

    bank = step.patch_bank.columns.T.contiguous()
    rows, weights = select_supports(bank, own, 0, excluded=anchors)
    student_log_probs = prototype_log_probs(student[masks], bank[rows[0]], weights[0].double(), 0.1)
    teacher_probs = prototype_log_probs(teacher[masks], bank[rows[0]], weights[0].double(), 0.04).exp()
    loss = sop_mim_loss(student_log_probs, teacher_probs, image_weights(masks))
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, student)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ('num_rows', 'num_prototypes', 'num_supports', 'expected'),
    [(65536, 32, 8, 3.44), (65536, 4096, 8, 8.29), (8192, 512, 0, 5.6)],
)
def test_loss_at_start(num_rows, num_prototypes, num_supports, expected):
    bank, embeddings = unit_rows(num_rows, 256, dtype=torch.float32), unit_rows(64, 256, dtype=torch.float32)
    rows, weights = select_supports(bank, torch.randperm(num_rows)[None, :num_prototypes], num_supports)
    log_probs = prototype_log_probs(embeddings, bank[rows[0]], weights[0], 0.1)
    probs = prototype_log_probs(embeddings, bank[rows[0]], weights[0], 0.04).exp()
    loss = sop_cls_loss(log_probs.expand(2, -1, -1), probs.expand(2, -1, -1))
    assert loss.item() == pytest.approx(expected, rel=0.02)
