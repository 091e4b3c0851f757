import pytest
from mmengine.config import Config

from mm_sop.engine.restarts import continue_restarted


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """Start the run for the n-th time, and return whether and from what it resumes."""
    for name in ('RANK', 'SLURM_PROCID', 'SLURM_JOB_ID', 'TORCHELASTIC_RUN_ID', 'TORCHELASTIC_RESTART_COUNT'):
        monkeypatch.delenv(name, raising=False)

    def start(count, job='7'):
        monkeypatch.setenv('SLURM_JOB_ID', job)
        monkeypatch.setenv('SLURM_RESTART_COUNT', str(count))
        cfg = Config(dict(work_dir=str(tmp_path), resume=False, load_from='start.pth'))
        continue_restarted(cfg)
        return cfg.resume, cfg.load_from

    return start


def test_a_restarted_run_resumes_from_its_own_checkpoint_only(attempt, tmp_path):
    pointer = tmp_path / 'last_checkpoint'
    assert attempt(0) == (False, 'start.pth')
    assert attempt(1) == (False, 'start.pth'), 'it had saved nothing'
    pointer.write_text('iter_4.pth')
    assert attempt(2) == (True, None)

    assert attempt(0, job='8') == (False, 'start.pth'), 'a new run in the same folder'
    assert attempt(1, job='8') == (False, 'start.pth'), 'the checkpoint is of the earlier run'
    pointer.write_text('iter_8.pth')
    assert attempt(2, job='8') == (True, None)
