import pytest
import torch
from mmpretrain.registry import MODELS
from testing.sop_models import prototypes


def sampler(**options):
    torch.manual_seed(0)
    return MODELS.build(prototypes(**options))


def anchors_of(drawn):
    return drawn.members[..., -1, :]


def test_members_are_the_anchor_and_its_nearest_rows_outside_the_anchors():
    model = sampler(size=40, num_anchors=6, num_supports=3, num_tasks=2)
    drawn = model()
    bank = model.bank.embeddings
    for task in range(2):
        anchors = anchors_of(drawn)[task]
        rows = [int((bank - anchor).norm(dim=1).argmin()) for anchor in anchors]
        assert len(set(rows)) == 6
        for index, row in enumerate(rows):
            others = sorted(set(range(40)) - set(rows), key=lambda other: -float(bank[row] @ bank[other]))[:3]
            assert torch.equal(drawn.members[task, index], bank[[*others, row]])
            expected = [max(0.0, float(bank[row] @ bank[other])) for other in others] + [0.9]
            torch.testing.assert_close(drawn.weights[task, index], torch.tensor(expected))


def test_anchors_change_with_every_step_and_differ_between_tasks():
    model = sampler()
    first, second = anchors_of(model()), anchors_of(model())
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_state_dict_continues_the_same_draws():
    model = sampler()
    model(), model()
    twin = sampler()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model().members, twin().members)


def test_draws_do_not_depend_on_the_global_random_state():
    model, twin = sampler(), sampler()
    twin.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    first = model()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(first.members, twin().members)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('selection', ['uniform', 'low_energy'])
def test_halving_keeps_half_and_excludes_all_drawn_anchors(selection):
    model = sampler(size=20, num_anchors=12, num_supports=8, num_tasks=1, anchor_selection=selection)
    drawn = model()
    assert drawn.members.shape[:3] == (1, 6, 9)
    # 12 of 20 rows were drawn: whatever was kept, the 8 supports can only be the other rows.
    rows = {tuple(row.tolist()) for row in drawn.members[0, :, :-1].flatten(0, 1)}
    assert len(rows) == 8
    assert not rows & {tuple(row.tolist()) for row in anchors_of(drawn)[0]}


def test_uniform_thinning_keeps_every_row_equally_often():
    model = sampler(size=16, num_anchors=8, num_supports=0, num_tasks=500, anchor_selection='uniform')
    bank = model.bank.embeddings
    rows = (anchors_of(model()).flatten(0, 1) @ bank.T).argmax(1)
    counts = torch.bincount(rows, minlength=16)
    expected = 500 * 4 / 16
    # Chi-square with 15 degrees of freedom: 37.7 is exceeded once in a thousand times; the seed is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 37.7


def test_low_energy_prefers_anchors_with_even_supports():
    model = sampler(size=400, num_anchors=200, num_supports=8, num_tasks=4, anchor_selection='all')
    cosines = model().support_weights
    variation = cosines.std(-1) / cosines.mean(-1)
    model.anchor_selection = 'low_energy'
    kept = torch.stack([model().support_weights for _ in range(5)])
    assert (kept.std(-1) / kept.mean(-1)).mean() < variation.mean() * 0.99


def test_fixed_anchors_stay_the_same_vectors_while_the_queue_moves_on():
    model = sampler(size=32, fix_anchors_after=2)
    free = [anchors_of(model()) for _ in range(2)]
    assert not torch.equal(*free)
    fixed = anchors_of(model())
    for _ in range(4):
        model.bank.enqueue(torch.nn.functional.normalize(torch.randn(16, 16), dim=1))
        drawn = model()
        assert torch.equal(anchors_of(drawn), fixed)
    supports = drawn.members[..., :-1, :].flatten(0, 2)
    assert ((supports @ model.bank.embeddings.T).amax(1) > 0.9999).all(), 'supports come from the bank as it is now'
    twin = sampler(size=32, fix_anchors_after=2)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(anchors_of(twin()), fixed)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_anchors=62, num_supports=3), '62 anchors and 3 supports do not fit into a bank of 64 rows'),
        (dict(num_anchors=7, anchor_selection='uniform'), 'num_anchors is 7: choose an even number'),
        (dict(num_anchors=2, anchor_selection='uniform'), 'at least 2 needed'),
        (dict(anchor_selection='half'), "must be 'all', 'uniform' or 'low_energy', got 'half'"),
        (dict(anchor_selection='low_energy', num_supports=1), 'at least 2 supports'),
        (dict(fix_anchors_after=-1), 'must not be negative'),
        (dict(num_tasks=0), 'num_tasks=0.* at least one task'),
        (dict(num_supports=-1), 'num_supports=-1.* no negative number of supports'),
        (dict(anchor_weight=1.5), r'anchor_weight=1.5: .* a weight in \[0, 1\]'),
    ],
)
def test_refuses_settings_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)
