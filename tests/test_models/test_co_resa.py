"""ReSA with the local-global term of CO-SSL."""

import pytest
import torch
from mmpretrain.registry import MODELS
from testing.resa_models import WIDTH, batch, build_resa, plain_config, resa_config
from torch.nn.functional import normalize

from mm_sop.functional import sinkhorn, soft_assignment_loss

LOCAL = dict(
    type='LocalGlobalHead',
    projector=dict(type='MLPNeck', in_channels=32, hid_channels=24, out_channels=WIDTH),
    predictor=dict(type='MLPNeck', in_channels=WIDTH, hid_channels=24, out_channels=WIDTH, num_layers=2),
    num_cells=None,
)


def tokens(networks, view):
    """[CLS], and the list of cells."""
    features = networks['backbone'](view)[-1]
    return features[:, 0], list(features[:, 1:].unbind(1))


def slow_local_loss(model, views):
    """Both directions, both orders and every cell, one after the other."""
    head = model.local_head
    student = [tokens(model.student, view) for view in views[:2]]
    with torch.no_grad():
        teacher = [tokens(model.teacher, view) for view in views[:2]]
    encodings = normalize(student[0][0]).detach(), normalize(teacher[0][0])
    assignment = sinkhorn(encodings[0] @ encodings[1].T)
    terms = {'local': [], 'global': []}
    for a, b in ((0, 1), (1, 0)):
        prediction = normalize(model.head.predictor(model.neck((student[a][0],)))[0])
        key = normalize(model.teacher['neck']((teacher[b][0],))[0])
        for cell in student[a][1]:
            embedding = normalize(head.predictor(head.projector((cell,)))[0])
            terms['local'].append(soft_assignment_loss(embedding @ key.T / 0.4, assignment))
        for cell in teacher[b][1]:
            local_key = normalize(model.teacher['local_projector']((cell,))[0])
            terms['global'].append(soft_assignment_loss(prediction @ local_key.T / 0.4, assignment))
    return (sum(terms['local']) / len(terms['local']) + sum(terms['global']) / len(terms['global'])) / 2


@pytest.mark.parametrize('num_crops', [0, 2])
def test_losses_equal_loops_over_cells(num_crops):
    views = batch(num_crops=num_crops)
    model = build_resa(resa_config(local_head=LOCAL))
    losses = model.loss(views)
    torch.testing.assert_close(losses['loss_local'], 0.3 * slow_local_loss(model, views))
    model.local_head = None
    torch.testing.assert_close(losses['loss_global'], 0.7 * model.loss(views)['loss_resa'])


def test_gradient_reaches_both_heads_and_the_encoder():
    model = build_resa(resa_config(local_head=LOCAL))
    model.loss(batch())['loss_local'].backward()
    reached = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {'backbone', 'neck', 'head', 'local_head'}


def test_scale_of_the_gradient_holds_for_cells():
    gradients = []
    for scale in (1.0, 0.25):
        model = build_resa(resa_config(local_head=LOCAL, head=dict(grad_scale=scale)))
        losses = model.loss(batch())
        (losses['loss_global'] + losses['loss_local']).backward()
        gradients.append(model.backbone.cls_token.grad)
    torch.testing.assert_close(gradients[1], 0.25 * gradients[0])


def test_weight_zero_is_resa():
    config = resa_config(local_head=dict(LOCAL, weight=0))
    assert MODELS.build(config).state_dict().keys() == MODELS.build(resa_config()).state_dict().keys()


def test_the_plain_form_has_no_teacher_for_cells():
    with pytest.raises(ValueError, match='does not go with a local_head'):
        MODELS.build(plain_config(local_head=LOCAL))
