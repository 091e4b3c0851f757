"""Evaluation on a device that does not exist: nothing mixes devices, from images to scores."""

import pytest
from testing.rehearsal import evaluate

PROTOCOLS = dict(
    knn=dict(num_neighbors=(1, 5), fractions=(0.5,), shots=(1,), tries=2),
    linear=dict(learning_rates=(0.1, 1.0), weight_decays=(0.0,), epochs=2, batch_size=8, validation=0.25),
    logistic={},
    clustering={},
)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('name', PROTOCOLS)
def test_protocols_run_on_the_device(process, tmp_path, name):
    found = process.submit(evaluate, {name: PROTOCOLS[name]}, tmp_path).result()[name]
    assert found['result']
    assert found['flops'] > 0
    # Encoding waits for nothing but its result.
    assert not any(place.startswith(('encoder.py', 'data_preprocessor.py', 'readout.py')) for place in found['waits'])
    # Clustering computes silhouettes in float64.
    assert set(found['float64']) == set() or name == 'clustering'
