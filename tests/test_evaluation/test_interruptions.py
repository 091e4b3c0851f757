"""Interrupted protocols continue after their stored partial results."""

from pathlib import Path

import pytest
from mmengine.registry import init_default_scope
from testing.distributed import run_distributed
from testing.evaluation_encoders import make_context, write_classes
from testing.search_assets import COLORS, color_encoder, write_copydays, write_davis, write_image

from mm_sop.evaluation import context as context_module
from mm_sop.evaluation.context import build_protocol
from mm_sop.evaluation.dense.video import VideoSegmentationProtocol
from mm_sop.evaluation.results import EvaluationResults
from mm_sop.evaluation.retrieval import descriptors
from mm_sop.evaluation.run import run_protocols

OPTIONS = dict(
    rank=dict(images=12, lidar_images=5, views=3),
    locality=dict(max_embedded=0, max_gradients=6, num_images=2),
    videoseg=dict(),
    copy=dict(distractors='others', distractor_block=2),
)
WORK = dict(
    rank=(context_module, 'extract_features'),
    locality=(context_module, 'extract_features'),
    videoseg=(VideoSegmentationProtocol, '_evaluate'),
    copy=(descriptors, 'count_above'),
)


class Interrupted(BaseException):
    """Ends a process; an ordinary error would be recorded as a failure of the protocol."""


class CountedWork:
    """Counts the calls of a function, and raises instead of one of them."""

    def __init__(self, monkeypatch, owner, name):
        self.calls, self.last, function = 0, None, getattr(owner, name)

        def work(*args, **kwargs):
            if self.calls == self.last:
                raise Interrupted
            self.calls += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, work)

    def restart(self, last=None):
        self.calls, self.last = 0, last


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_classes(folder / 'train', 4)
    write_classes(folder / 'val', 3, seed=1)
    write_davis(folder / 'DAVIS', ('one', 'two', 'three'), frames=4)
    write_copydays(folder / 'copydays')
    for number in range(7):
        write_image(folder / f'others/{number}.png', COLORS[number % 6], seed=50 + number)
    return folder


def evaluate(name, data, work_dir):
    init_default_scope('mmpretrain')
    context = make_context(data, work_dir)
    if name in ('videoseg', 'copy'):
        context.encoder = color_encoder(4)
    protocol = build_protocol(name, OPTIONS[name])
    (record,) = run_protocols({name: protocol}, context, EvaluationResults(work_dir))
    return {key: record[key] for key in ('status', 'scores', 'key')} | dict(found=record['card']['found'])


@pytest.mark.parametrize('name', OPTIONS)
def test_partial_results_are_not_computed_again(name, data, tmp_path, monkeypatch):
    monkeypatch.setattr(context_module, '_BLOCK', 5)
    work = CountedWork(monkeypatch, *WORK[name])
    straight, total = evaluate(name, data, tmp_path / 'straight'), work.calls
    assert straight['status'] == 'done' and total >= 3
    work.restart(last=total - 2)
    with pytest.raises(Interrupted):
        evaluate(name, data, tmp_path / 'interrupted')
    work.restart()
    assert evaluate(name, data, tmp_path / 'interrupted') == straight
    assert work.calls == 2
    assert not (tmp_path / 'interrupted/parts').exists()


def evaluate_interrupted(rank, world_size, data, work_dir):
    """The second process ends before the first; both are started again."""
    patch = pytest.MonkeyPatch()
    work = CountedWork(patch, descriptors, 'count_above')
    name, context = 'copy', None
    init_default_scope('mmpretrain')
    context = make_context(data, work_dir)
    context.encoder, context.parts = color_encoder(4), Path(work_dir, 'parts/key')
    protocol = build_protocol(name, OPTIONS[name])
    found = protocol.find_data(context)
    work.restart(last=1 - rank)
    reduce, descriptors.all_reduce = descriptors.all_reduce, lambda *args: None
    with pytest.raises(Interrupted):
        protocol.run(context, found)
    descriptors.all_reduce = reduce
    work.restart()
    result = protocol.run(context, found)
    patch.undo()
    return {name: score.value for name, score in result.scores.items()}, work.calls


def test_processes_that_were_interrupted_at_different_parts(data, tmp_path):
    straight = evaluate('copy', data, tmp_path / 'one')
    results = run_distributed(evaluate_interrupted, data, tmp_path / 'two')
    # Of seven distractors the first process counts 2 + 2, of which the first two are done, the second one 2 + 1.
    assert [calls for _, calls in results] == [1, 2]
    for scores, _ in results:
        assert scores == {name: score['value'] for name, score in straight['scores'].items()}
