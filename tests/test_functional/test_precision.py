import pytest
import torch

from mm_sop.functional.precision import at_least_fp32, unit_vectors


@pytest.mark.parametrize(
    ('given', 'expected'), [('float16', 'float32'), ('bfloat16', 'float32'), ('float64', 'float64')]
)
def test_only_half_precision_is_converted(given, expected):
    assert at_least_fp32(torch.ones(2, dtype=getattr(torch, given))).dtype == getattr(torch, expected)


def test_zeros_in_half_precision_stay_zeros():
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float16)
    torch.testing.assert_close(unit_vectors(vectors), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
