import io
import random

import numpy as np
import pytest
import torch

from mm_sop.datasets.randomness import (
    collect_random_state,
    isolated_random_state,
    restore_random_state,
    seed_everything_from,
)


def draw():
    return random.random(), random.gauss(0, 1), np.random.random(), np.random.normal(), torch.rand(1).item()


def test_seeding_repeats_and_separates_streams():
    streams = {}
    for entropy in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 2), (2**32 + 1, 0, 1)]:
        seed_everything_from(*entropy)
        streams[entropy] = draw()
        seed_everything_from(*entropy)
        assert draw() == streams[entropy]
    assert all(len(set(values)) == len(streams) for values in zip(*streams.values(), strict=True))


def test_neighboring_samples_are_uncorrelated():
    draws = []
    for index in range(2000):
        seed_everything_from(0, 0, index)
        draws.append((random.random(), np.random.random(), torch.rand(1).item()))
    draws = np.array(draws)
    # Standard errors of 2000 values: 0.0065 for the mean, 0.022 for a correlation.
    assert np.abs(draws.mean(0) - 0.5).max() < 0.03
    lagged = np.corrcoef(np.hstack([draws[1:], draws[:-1]]).T)
    assert np.abs(lagged - np.eye(6)).max() < 0.1


def test_isolation_restores_all_generators_even_after_an_error():
    state = collect_random_state()
    expected = draw()
    restore_random_state(state)
    with pytest.raises(KeyError), isolated_random_state():
        seed_everything_from(7)
        draw()
        raise KeyError
    assert draw() == expected


def test_isolation_continues_the_stream_inside():
    state = collect_random_state()
    expected = draw()
    restore_random_state(state)
    with isolated_random_state():
        assert draw() == expected
    assert draw() == expected


def test_state_survives_a_safe_checkpoint():
    draw()  # leaves half of a Gaussian pair in Python's and NumPy's state
    file = io.BytesIO()
    torch.save(collect_random_state(), file)
    expected = draw(), draw()
    file.seek(0)
    restore_random_state(torch.load(file, weights_only=True))
    assert (draw(), draw()) == expected
