import pytest

from mm_sop.evaluation.classification.knn_records import (
    KNNRecords,
    format_summary,
    paired_gain,
    read_curve,
    read_run,
    summarize,
)


def record(network, iteration, accuracy):
    scores = dict(seen_class_k20=dict(accuracy=accuracy, standard_error=0.01))
    return dict(network=network, iter=iteration, epoch=None, seconds=1.0, scores=scores)


def test_first_and_last_of_a_run(tmp_path):
    records = KNNRecords(tmp_path)
    for entry in (('teacher', 20, 0.5), ('raw_pixels', None, 0.3), ('teacher', 0, 0.1), ('teacher', 10, 0.4)):
        records.add(record(*entry))
    run, iteration = read_run(tmp_path)
    accuracies = {features: scores['seen_class_k20']['accuracy'] for features, scores in run.items()}
    assert accuracies == dict(raw_pixels=0.3, untrained=0.1, trained=0.5)
    assert iteration == 20
    assert read_curve(tmp_path, 'seen_class_k20') == ([0, 10, 20], [0.1, 0.4, 0.5])


def test_unfinished_run_is_refused(tmp_path):
    KNNRecords(tmp_path).add(record('teacher', 0, 0.1))
    with pytest.raises(ValueError, match='is the run finished'):
        read_run(tmp_path)


def test_summary_of_three_and_of_one():
    summary = summarize([0.1, 0.2, 0.3])
    assert summary['mean'] == pytest.approx(0.2)
    assert summary['deviation'] == pytest.approx(0.1)
    assert format_summary(summary) == '20.0 ± 10.0'
    assert format_summary(summarize([0.25])) == '25.0'


def scores_of(right):
    return dict(test_class_k20=dict(right_by_identity=right, images_by_identity=[10, 10, 20]))


def test_paired_gain_over_two_seeds():
    runs = [
        dict(untrained=scores_of([1, 2, 3]), trained=scores_of([2, 3, 5])),
        dict(untrained=scores_of([1, 2, 3]), trained=scores_of([4, 5, 9])),
    ]
    gain = paired_gain(runs, 'test_class_k20', 'untrained')
    assert gain['gain'] == pytest.approx((2 + 2 + 4) / 40)
    # Every object gains two of ten images.
    assert gain['standard_error'] == pytest.approx(0)
    del runs[0]['untrained']['test_class_k20']['right_by_identity']
    assert paired_gain(runs, 'test_class_k20', 'untrained') is None
