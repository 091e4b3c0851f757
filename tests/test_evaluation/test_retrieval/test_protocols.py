import math
import pickle

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image
from testing.distributed import run_distributed
from testing.search_assets import COLORS, color_encoder, write_copydays, write_davis, write_image, write_oxford

from mm_sop.datasets.labeled.davis import read_davis, read_mask
from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.evaluation.context import EvaluationContext, MissingDataError, build_protocol
from mm_sop.evaluation.dense.video import score_masks, summarize_curves
from mm_sop.evaluation.features.store import FeatureCache
from mm_sop.functional.segmentation import contour_accuracy, region_similarity
from mm_sop.report.evaluation import draw


def evaluate(rank, world_size, name, options, folder, cell=8):
    init_default_scope('mmpretrain')
    work_dir = folder / f'work_{world_size}'
    context = EvaluationContext(
        color_encoder(cell),
        folder,
        work_dir,
        FeatureCache(work_dir / 'cache', shard_size=3),
        EvaluationTransform(32),
        batch_size=4,
        num_workers=0,
    )
    protocol = build_protocol(name, options)
    return protocol.run(context, protocol.find_data(context))


def values(result):
    return {name: score.value for name, score in result.scores.items()}


def assert_same_in_two_processes(alone, *args):
    for result in run_distributed(evaluate, *args):
        assert values(result) == values(alone)
        name = args[0]
        assert [image.files for image in draw(name, result.data)] == [image.files for image in draw(name, alone.data)]


def test_colors_are_retrieved(tmp_path):
    write_oxford(tmp_path / 'roxford5k')
    result = evaluate(0, 1, 'retrieval', {}, tmp_path)
    assert list(result.scores)[:2] == ['roxford5k medium mAP', 'roxford5k medium mP@1']
    assert set(values(result).values()) == {1.0} and len(result.scores) == 12
    assert result.card['sets']['roxford5k']['answerable'] == dict(medium=3, hard=3, easy=3)
    assert_same_in_two_processes(result, 'retrieval', {}, tmp_path)


def test_distractors_of_a_query_color_harm(tmp_path):
    write_oxford(tmp_path / 'retrieval')
    for number in range(3):
        write_image(tmp_path / f'others/{number}.jpg', COLORS[0], seed=0)
    options = dict(distractors='others', distractor_block=2)
    result = evaluate(0, 1, 'retrieval', options, tmp_path)
    assert result.card['sets']['retrieval']['distractors'] == 3
    # The distractors equal the first query, so its three positives come fourth to sixth.
    medium = (sum((n / (n + 3) + (n + 1) / (n + 4)) / 2 for n in range(3)) / 3 + 2) / 3
    assert values(result)['retrieval medium mAP'] == pytest.approx(medium)
    assert_same_in_two_processes(result, 'retrieval', options, tmp_path)


def test_boxes_decide_what_is_searched(tmp_path):
    folder = tmp_path / 'retrieval'
    write_oxford(folder)
    # The query shows its object in the box only.
    image = np.array(Image.open(folder / 'jpg/query_0.jpg'))
    shown = np.full((96, 120, 3), COLORS[1], np.uint8)
    shown[32:64, 40:80] = image
    Image.fromarray(shown).save(folder / 'jpg/query_0.jpg')
    truth = pickle.loads((folder / 'gnd_tiny.pkl').read_bytes())
    truth['gnd'][0]['bbx'] = [40, 32, 80, 64]
    (folder / 'gnd_tiny.pkl').write_bytes(pickle.dumps(truth))
    assert values(evaluate(0, 1, 'retrieval', {}, tmp_path))['retrieval easy mP@1'] == 1
    assert values(evaluate(0, 1, 'retrieval', dict(crop_queries=False), tmp_path))['retrieval easy mP@1'] < 1


@pytest.mark.parametrize(
    ('name', 'write'), [('retrieval', write_oxford), ('copy', write_copydays)], ids=['retrieval', 'copy']
)
def test_descriptors_of_an_older_version_are_ignored(name, write, tmp_path, monkeypatch):
    write(tmp_path / dict(retrieval='roxford5k', copy='copydays')[name])
    counts = []
    for version in (1, 1, 2):
        monkeypatch.setattr(type(build_protocol(name)), 'version', version)
        evaluate(0, 1, name, {}, tmp_path)
        counts.append(len(list((tmp_path / 'work_1/cache').iterdir())))
    assert counts == [2, 2, 4]


def test_labeled_folders_are_searched(tmp_path):
    for number in range(4):
        for name, color in zip(('apple', 'leaf'), COLORS, strict=False):
            write_image(tmp_path / f'things/{name}/{number}.png', color, seed=number)
    result = evaluate(0, 1, 'retrieval', dict(sets=['things'], strips=3), tmp_path)
    assert values(result) == {f'things all {metric}': 1 for metric in ('mAP', 'mP@1', 'mP@5', 'mP@10')}


def test_labeled_folders_of_mixed_orientations_are_searched(tmp_path):
    for number in range(3):
        for name, color in zip(('apple', 'leaf'), COLORS, strict=False):
            path = tmp_path / f'things/{name}/{number}.jpg'
            write_image(path, color, seed=number)
            exif = Image.Exif()
            exif[0x0112] = (1, 6, 8)[number]
            Image.open(path).resize((120, 80)).save(path, exif=exif)
    result = evaluate(0, 1, 'retrieval', dict(sets=['things'], strips=3), tmp_path)
    assert set(values(result).values()) == {1}


def test_copies_are_found(tmp_path):
    write_copydays(tmp_path / 'copydays')
    for number, color in enumerate(COLORS):
        write_image(tmp_path / f'others/{number}.png', color, seed=50 + number)
    result = evaluate(0, 1, 'copy', {}, tmp_path)
    assert values(result) == {'strong mAP': 1, 'jpegqual mAP': 1, 'crops mAP': 1}
    assert result.card['mAP'] == dict.fromkeys(('strong', 'jpegqual/3', 'jpegqual/75', 'crops/50'), 1)
    assert [image.name for image in draw('copy', result.data)] == ['strips_strong', 'kinds']
    options = dict(whitening='others', whitening_images=5, distractors='others', size=16)
    whitened = evaluate(0, 1, 'copy', options, tmp_path)
    assert [whitened.card[key] for key in ('whitening_images', 'distractors', 'size')] == [5, 6, 16]
    assert values(whitened)['strong mAP'] > 0.5
    assert_same_in_two_processes(whitened, 'copy', options, tmp_path)


def test_moving_squares_are_followed(tmp_path):
    write_davis(tmp_path / 'DAVIS')
    result = evaluate(0, 1, 'videoseg', {}, tmp_path, 4)
    scores = values(result)
    assert scores['J&F'] > 0.9 and scores['J recall'] == scores['F recall'] == 1
    assert scores['J&F'] == pytest.approx((scores['J'] + scores['F']) / 2)
    assert scores['J&F of the first mask unmoved'] < 0.5
    assert result.card['objects'] == 4
    for sequence in read_davis(tmp_path / 'DAVIS'):
        (kept,) = tmp_path.glob(f'work_1/videoseg/*/{sequence.name}')
        assert np.array_equal(read_mask(kept / '00000.png'), read_mask(sequence.masks[0]))
        assert read_mask(kept / '00005.png').shape == (48, 80)
    assert_same_in_two_processes(result, 'videoseg', {}, tmp_path, 4)


def test_without_a_radius_and_with_other_sizes(tmp_path):
    write_davis(tmp_path / 'video', names=('one',))
    scores = values(evaluate(0, 1, 'videoseg', dict(radius=None, short_side=96, context_frames=1), tmp_path, 8))
    assert scores['J&F'] > 0.9


@pytest.mark.parametrize('name', ['retrieval', 'copy', 'videoseg'])
def test_missing_data_is_one_line(name, tmp_path):
    with pytest.raises(MissingDataError, match=rf'{tmp_path} has none of .*: expected .*') as caught:
        evaluate(0, 1, name, {}, tmp_path)
    assert '\n' not in str(caught.value)


def test_missing_distractors_are_named(tmp_path):
    write_oxford(tmp_path / 'retrieval')
    with pytest.raises(MissingDataError, match='revisitop1m does not exist: expected a folder of images'):
        evaluate(0, 1, 'retrieval', dict(distractors='revisitop1m'), tmp_path)


def test_masks_are_scored_without_first_and_last_frame_and_void():
    truth = np.zeros((5, 20, 30), np.uint8)
    truth[:, 5:15, 5:15] = 1
    truth[:, 5:15, 20:25] = 3
    predicted = truth.copy()
    predicted[[0, 4]] = 0
    predicted[2, 5:15, 10:15] = 0
    predicted[3, :5] = 3
    truth[3, :5] = 255
    scores = score_masks(predicted, truth)
    assert scores['J'].tolist() == [[1, 0.5, 1], [1, 1, 1]]
    half = torch.from_numpy(predicted[2] == 1), torch.from_numpy(truth[2] == 1)
    assert scores['F'][0].tolist() == [1, float(contour_accuracy(*half)), 1]
    assert float(region_similarity(*half)) == 0.5
    with pytest.raises(ValueError, match='shows no object'):
        score_masks(predicted, np.zeros_like(truth))


def test_scores_are_means_over_objects_of_all_sequences():
    long = dict(J=np.array([[0.9] * 4 + [0.4] * 4]), F=np.full((1, 8), 0.7), unmoved=np.full((1, 8), 0.1))
    short = dict(J=np.array([[1.0, 1.0], [0.2, 0.2]]), F=np.full((2, 2), 0.4), unmoved=np.full((2, 2), 0.3))
    scores = summarize_curves([long, short])
    assert scores['J'].value == pytest.approx((0.65 + 1 + 0.2) / 3)
    assert scores['F'].value == pytest.approx(0.5)
    assert scores['J&F'].value == pytest.approx((scores['J'].value + 0.5) / 2)
    assert scores['J recall'].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert scores['F recall'].value == pytest.approx(1 / 3)
    assert scores['J decay'].value == pytest.approx((0.9 - 0.4) / 3)
    assert scores['J&F of the first mask unmoved'].value == pytest.approx(0.7 / 3)
    assert scores['F'].error == pytest.approx(math.sqrt(0.03) / math.sqrt(3))
