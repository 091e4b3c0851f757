import torch
from torch.nn.functional import normalize

from mm_sop.functional.whitening import fit_whitening, generalized_mean, whiten


def test_whitened_features_are_uncorrelated():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(4000, 5, generator=generator) @ torch.randn(5, 5, generator=generator) + 2
    mean, projection = fit_whitening(features)
    whitened = (normalize(features.double(), dim=1) - mean) @ projection
    # Normalized features lie on a sphere, but none of the five directions is flat here.
    torch.testing.assert_close(whitened.T @ whitened / 4000, torch.eye(5, dtype=torch.float64), atol=1e-8, rtol=0)
    result = whiten(features, mean, projection)
    assert result.dtype == features.dtype
    torch.testing.assert_close(result, normalize(whitened, dim=1).float())


def test_flat_directions_and_collapsed_networks_stay_finite():
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    features[:, 4:] = 0
    assert whiten(features, *fit_whitening(features)).isfinite().all()
    same = torch.ones(10, 4)
    assert whiten(same, *fit_whitening(same)).isfinite().all()


def test_generalized_mean_equals_the_loop():
    local = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(4))
    expected = [
        [(sum(max(v, 1e-6) ** 3 for v in place.flatten().tolist()) / 8) ** (1 / 3) for place in maps] for maps in local
    ]
    torch.testing.assert_close(generalized_mean(local, 3.0), torch.tensor(expected))
    assert torch.allclose(generalized_mean(torch.full((1, 2, 3, 3), 0.7)), torch.tensor(0.7))
