"""CO-SSL has the most structures: a file of its own runs beside the other methods."""

from testing.rehearsal import faults_in


def test_steps_stay_on_the_device(process):
    """No operation mixes devices, the host never waits, and all logged values stay on the device."""
    assert faults_in('co_ssl', process) == {}
