import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner
from mmpretrain.registry import DATA_SAMPLERS
from testing.distributed import run_distributed

from mm_sop.datasets import SampleKey


class Numbers:
    """Dataset that returns the key itself."""

    def __init__(self, length=23):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        return key


def build(dataset=None, **settings):
    return DATA_SAMPLERS.build(
        dict(type='ResumableSampler', dataset=Numbers() if dataset is None else dataset, **{'seed': 3, **settings})
    )


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_yields_every_index_once_with_its_epoch():
    sampler = build()
    for epoch in (0, 1, 5):
        keys = epoch_of(sampler, epoch)
        assert sorted(keys) == [(epoch, index) for index in range(23)]
        assert all(type(key) is SampleKey and type(key.index) is int for key in keys)
        assert len(sampler) == len(keys)


def test_order_depends_on_seed_and_epoch_only():
    sampler = build()
    orders = [tuple(key.index for key in epoch_of(sampler, epoch)) for epoch in range(5)]
    orders += [tuple(key.index for key in epoch_of(build(seed=seed), 0)) for seed in (4, 5)]
    assert len(set(orders)) == len(orders)
    np.random.seed(99)
    assert tuple(key.index for key in epoch_of(build(), 3)) == orders[3]


def test_unshuffled_order():
    assert epoch_of(build(shuffle=False), 2) == [(2, index) for index in range(23)]


def test_first_position_is_uniform():
    sampler = build(Numbers(5))
    counts = np.bincount([epoch_of(sampler, epoch)[0].index for epoch in range(2000)], minlength=5)
    assert np.abs(counts - 400).max() < 80  # standard deviation 18


def test_skip_holds_for_one_iteration():
    sampler = build()
    straight = epoch_of(sampler, 1)
    sampler.skip(9)
    assert list(sampler) == straight[9:]
    assert list(sampler) == straight
    assert len(sampler) == 23
    sampler.skip(23)
    assert list(sampler) == []
    for count in (-1, 24):
        with pytest.raises(ValueError, match=f'cannot skip {count} samples: an epoch has 23'):
            sampler.skip(count)


def test_loader_continues_in_the_middle_of_an_epoch():
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=0,
            drop_last=True,
            dataset=Numbers(),
            sampler=dict(type='ResumableSampler'),
            collate_fn=dict(type='pseudo_collate'),
        ),
        seed=3,
    )
    loader.sampler.set_epoch(2)
    straight = list(loader)
    assert len(straight) == len(loader) == 5
    loader.sampler.skip(3 * 4)
    assert list(loader) == straight[3:]


def ranks_epoch(rank, world_size, length):
    sampler = build(Numbers(length))
    return epoch_of(sampler, 1), len(sampler)


@pytest.mark.parametrize('length', [24, 25])
def test_two_ranks_share_the_batches_of_one_process(length):
    results = run_distributed(ranks_epoch, length)
    first, second = (keys for keys, _ in results)
    whole = epoch_of(build(Numbers(length)), 1)
    assert [count for _, count in results] == [12, 12]
    for step in range(4):
        batch = set(whole[6 * step : 6 * step + 6])
        assert {*first[3 * step : 3 * step + 3], *second[3 * step : 3 * step + 3]} == batch


def ranks_seeds(rank, world_size):
    np.random.seed(rank)
    return build(seed=None).seed


def test_ranks_agree_on_a_random_seed():
    first, second = run_distributed(ranks_seeds)
    assert first == second


def ranks_too_few(rank, world_size):
    with pytest.raises(ValueError, match='1 images cannot be shared among 2 processes'):
        build(Numbers(1))


def test_fewer_images_than_ranks():
    run_distributed(ranks_too_few)


def test_refuses_datasets_that_expect_indices():
    with pytest.raises(TypeError, match="wrap it, dataset=dict\\(type='SeededDataset'"):
        build(BaseDataset(lazy_init=True))
