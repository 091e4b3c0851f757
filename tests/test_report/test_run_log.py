import json

from mmengine.config import Config

from mm_sop.report.run_log import estimate_seconds, read_config, read_scalars
from mm_sop.utils.run_starts import list_starts, record_start


def write_log(work_dir, name, lines, end='\n'):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + end)


def test_resumed_run_is_one_history(work_dir):
    write_log(work_dir, '20260101_000000', [dict(loss=9 - step, step=step) for step in (1, 2, 3, 4)])
    write_log(work_dir, '20260102_000000', [dict(loss=step, step=step, lr=0.5) for step in (3, 5)])
    assert read_scalars(work_dir) == {'loss': ([1, 2, 3, 5], [8, 7, 3, 5]), 'lr': ([3, 5], [0.5, 0.5])}


def test_starts_are_ordered_by_their_record_and_not_by_the_clock(work_dir):
    """A run without a record of its start, its resumption, and two more after the clock was set back."""
    write_log(work_dir, '20260104_000000', [dict(loss=1, step=step) for step in (1, 2)])
    starts = [('20260105_000000', 2, (3, 4, 5)), ('20250101_000000', 3, (5, 6)), ('20240101_000000', 3, (4,))]
    for number, (name, iteration, steps) in enumerate(starts, start=2):
        record_start(work_dir / name, iteration)
        write_log(work_dir, name, [dict(loss=number, step=step) for step in steps])
        Config(dict(number=number)).dump(work_dir / name / 'vis_data/config.py')
    # All values of the last start but one are gone, even those that the last start has not repeated.
    assert read_scalars(work_dir) == {'loss': ([1, 2, 3, 4], [1, 1, 2, 4])}
    assert read_config(work_dir).number == 4
    (work_dir / '20260105_000000/start.json').write_text('[')
    assert [start.number for start in list_starts(work_dir)] == [-1, -1, 1, 2]


def test_earlier_iterations_are_renumbered_when_epochs_change_their_length(work_dir):
    """Epochs of 4 iterations, then of 2 from the position of iteration 6 on, then again of 4."""
    for number, (iteration, length, steps) in enumerate([(0, 4, (2, 4, 6, 8)), (3, 2, (4, 5)), (8, 4, (10,))]):
        record_start(work_dir / str(number), iteration, length)
        write_log(work_dir, str(number), [dict(loss=number, step=step) for step in steps])
        if number == 1:
            assert read_scalars(work_dir) == {'loss': ([1, 2, 3, 4, 5], [0, 0, 0, 1, 1])}
    assert read_scalars(work_dir) == {'loss': ([2, 4, 6, 8, 10], [0, 0, 0, 1, 2])}


def test_values_of_one_step_on_several_lines(work_dir):
    write_log(work_dir, 'a', [dict(loss=1, step=2), {'knn/seen': 0.5, 'step': 2}, {'knn/seen': 0.6, 'step': 4}])
    assert read_scalars(work_dir) == {'loss': ([2], [1]), 'knn/seen': ([2, 4], [0.5, 0.6])}


def test_crashed_and_empty_logs(work_dir):
    write_log(work_dir, 'a', [dict(loss=1, step=1, name='text')], end='\n{"loss": 2, "st')
    write_log(work_dir, 'b', [], end='')
    assert read_scalars(work_dir) == {'loss': ([1], [1])}
    assert read_scalars(work_dir / 'nothing') == {}


def test_time_is_divided_among_activities():
    scalars = dict(time=([10, 20, 30], [0.5, 9.0, 0.5]), data_wait=([10, 20], [0.1, 0.3]))
    seconds = estimate_seconds(scalars, [dict(seconds=2.0), dict(seconds=1.0)])
    assert seconds == {'training': 12.0, 'waiting for data': 3.0, 'evaluation': 3.0}
    assert estimate_seconds({}, [dict(seconds=2.0)]) == {}
