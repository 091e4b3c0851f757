import math

import numpy as np
import pytest
import torch
from testing.distributed import run_distributed
from testing.labeled_images import TinyImages

from mm_sop.evaluation.classification.knn_evaluator import KNNEvaluator, read_labels
from mm_sop.functional.knn import knn_scores


def pixels(batch):
    return dict(pixels=batch['inputs'].float().flatten(1) - 127)


def signs(batch):
    """Few distinct features, hence many equal cosines."""
    return dict(signs=(batch['inputs'][:, 0, 0, :3].float() - 127).sign())


def make_evaluator(num_neighbors=(1, 5), known=('gt_label', 'identity'), count=31, **kwargs):
    bank = TinyImages(range(8), count=count, seed=1, noise=500, known=known)
    queries = dict(
        seen=TinyImages(range(8), count=20, seed=2, noise=500, known=known),
        unseen=TinyImages(range(8, 14), count=13, seed=3, noise=500, known=known),
    )
    return KNNEvaluator(bank, queries, num_neighbors=num_neighbors, batch_size=4, **kwargs)


def test_scores_equal_the_plain_protocol():
    evaluator = make_evaluator()
    scores = evaluator.evaluate(pixels)['pixels']
    assert list(scores) == [f'{name}_k{k}' for name in ('seen_class', 'seen_identity', 'unseen_class') for k in (1, 5)]
    bank, seen = evaluator.bank, evaluator.queries['seen']
    train, test = (dataset.images.float().flatten(1) - 127 for dataset in (bank, seen))
    for label in ('class', 'identity'):
        labels, truth = (torch.from_numpy(read_labels(dataset, label)) for dataset in (bank, seen))
        for k, votes in knn_scores(train, labels, test, [1, 5]).items():
            accuracy = (votes.argmax(1) == truth).double().mean()
            assert scores[f'seen_{label}_k{k}']['accuracy'] == pytest.approx(float(accuracy))
    assert 0.2 < scores['seen_identity_k5']['accuracy'] < 1


def test_error_is_by_object_only_for_unseen_objects():
    scores = make_evaluator(num_neighbors=5).evaluate(pixels)['pixels']
    seen, unseen = scores['seen_class_k5'], scores['unseen_class_k5']
    assert seen['standard_error'] == seen['binomial_standard_error'] != seen['clustered_standard_error']
    assert unseen['standard_error'] == unseen['clustered_standard_error'] != unseen['binomial_standard_error']
    expected = math.sqrt(seen['accuracy'] * (1 - seen['accuracy']) / 20)
    assert seen['binomial_standard_error'] == pytest.approx(expected)
    assert (seen['num_images'], seen['num_identities']) == (20, 8)
    assert (unseen['num_images'], unseen['num_identities']) == (13, 6)
    assert sum(unseen['images_by_identity']) == 13
    assert sum(unseen['right_by_identity']) / 13 == unseen['accuracy']
    assert seen['chance'] == pytest.approx(1 / 3) and scores['seen_identity_k5']['chance'] == pytest.approx(1 / 8)


def test_several_readouts_share_the_images():
    evaluator = make_evaluator()
    both = evaluator.evaluate(lambda batch: pixels(batch) | signs(batch))
    assert both['pixels'] == evaluator.evaluate(pixels)['pixels']
    assert both['signs'] == evaluator.evaluate(signs)['signs'] != both['pixels']


def test_data_without_identities():
    scores = make_evaluator(num_neighbors=3, known=('gt_label',)).evaluate(pixels)['pixels']
    assert list(scores) == ['seen_class_k3', 'unseen_class_k3']
    assert 'clustered_standard_error' not in scores['unseen_class_k3']
    assert scores['unseen_class_k3']['standard_error'] == scores['unseen_class_k3']['binomial_standard_error']


def test_labels_need_not_be_consecutive():
    bank = TinyImages([4, 90, 37], count=30, noise=10)
    evaluator = KNNEvaluator(bank, dict(seen=TinyImages([90, 4], count=10, seed=5, noise=10)), num_neighbors=3)
    scores = evaluator.evaluate(pixels)['pixels']
    assert scores['seen_identity_k3']['accuracy'] == 1


def evaluate_rank(rank, world_size, num_neighbors, count):
    evaluator = make_evaluator(num_neighbors, count=count)
    scores = [evaluator.evaluate(encode) for encode in (pixels, signs)]
    return scores, len(evaluator.bank.loaded), sorted(set(evaluator.bank.loaded))


# 31 images do not divide by 2; with k=5 of 7 no process holds enough neighbors itself.
@pytest.mark.parametrize('num_neighbors, count', [((1, 5), 31), ((5,), 7)])
def test_two_processes_equal_one(num_neighbors, count):
    expected, _, _ = evaluate_rank(0, 1, num_neighbors, count)
    for rank, (scores, loaded, which) in enumerate(run_distributed(evaluate_rank, num_neighbors, count)):
        assert scores == expected
        assert which == list(range(rank, count, 2)) and loaded == 2 * len(which)


def test_bad_data_is_refused():
    with pytest.raises(ValueError, match='num_neighbors=32 is more than the 31 images'):
        make_evaluator(num_neighbors=(1, 32))
    with pytest.raises(ValueError, match='no query shares any of the labels'):
        make_evaluator(known=())
    bank, queries = TinyImages([1]), TinyImages([1])
    queries.metainfo = dict(classes=('other',))
    with pytest.raises(ValueError, match="bank and queries 'seen' have different classes"):
        KNNEvaluator(bank, dict(seen=queries), num_neighbors=1)
    bank.get_data_info = lambda index: dict(gt_label=[1, 2])
    with pytest.raises(ValueError, match=r"one integer per image as 'gt_label', got \[1, 2\]"):
        read_labels(bank, 'class')


def test_labels_without_loading():
    dataset = TinyImages([3, 8], count=5)
    assert np.array_equal(read_labels(dataset, 'class'), [0, 2, 0, 2, 0])
    assert np.array_equal(read_labels(dataset, 'identity'), [3, 8, 3, 8, 3])
    assert read_labels(dataset, 'pose') is None and not dataset.loaded
