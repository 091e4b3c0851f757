"""Logistic regression against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import linear

from mm_sop.evaluation.classification.logistic import fit_logistic, standardize


@pytest.mark.parametrize('penalty', [1e-3, 0.1])
def test_fit_equals_scikit_learn(penalty):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = (features[:, :3] + 0.5 * torch.randn(60, 3, generator=generator, dtype=torch.float64)).argmax(1)
    weight, bias = fit_logistic(features, labels, 3, penalty)
    model = LogisticRegression(C=1 / (penalty * 60), tol=1e-10, max_iter=5000).fit(features.numpy(), labels.numpy())
    ours = linear(features, weight, bias).softmax(1).numpy()
    np.testing.assert_allclose(ours, model.predict_proba(features.numpy()), atol=1e-4)
    np.testing.assert_allclose(weight.numpy(), model.coef_, atol=2e-3)


def test_class_without_images_is_never_predicted():
    features = torch.eye(4)
    weight, bias = fit_logistic(features, torch.tensor([0, 0, 2, 2]), 3)
    assert linear(features, weight, bias).argmax(1).tolist() == [0, 0, 2, 2]


def test_standardize():
    train = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    first, second = standardize(train, torch.tensor([[2.0, 7.0]]))
    assert first.tolist() == [[-1, 0], [1, 0]]
    assert second.tolist() == [[0, 2]]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='penalty of at least 0'):
        fit_logistic(torch.eye(2), torch.tensor([0, 1]), 2, penalty=-1)
    with pytest.raises(ValueError, match='one label per row'):
        fit_logistic(torch.eye(2), torch.tensor([0]), 2)
