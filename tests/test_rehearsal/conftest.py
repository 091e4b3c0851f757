"""A process in which the device that does not exist may be registered."""

import pytest
from testing.rehearsal import one_process


@pytest.fixture(scope='module')
def process():
    with one_process() as executor:
        yield executor
