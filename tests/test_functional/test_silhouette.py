import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_samples

from mm_sop.functional import cosine_silhouette


@pytest.mark.parametrize('labels', [[0, 1, 2] * 7, [4, 4, 9, 9, 9, 2] * 3 + [7] * 3])
def test_against_scikit_learn(labels):
    features = np.random.default_rng(0).normal(size=(21, 5)) + np.array(labels)[:, None]
    found = cosine_silhouette(torch.from_numpy(features), torch.tensor(labels))
    np.testing.assert_allclose(found, silhouette_samples(features, labels, metric='cosine'), atol=1e-12)


def test_single_member_of_a_cluster_counts_zero():
    features = torch.tensor([[1.0, 0], [1, 0.1], [0, 1]])
    found = cosine_silhouette(features, torch.tensor([0, 0, 1]))
    assert found[2] == 0
    assert (found[:2] > 0.9).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match='at least 2 clusters'):
        cosine_silhouette(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match='labels do not match'):
        cosine_silhouette(torch.ones(3, 2), torch.zeros(4, dtype=torch.long))
