"""Losses of detectors at their real size on a device that does not exist."""

import pytest
from testing.rehearsal import detection_losses, observe

# MMDetection chooses boxes on the host: the files in which it waits.
WAITS_BY_DESIGN = {
    'anchor_generator',
    'anchor_head',
    'base_data_element',
    'base_sampler',
    'bbox_head',
    'bbox_overlaps',
    'cross_entropy_loss',
    'data_preprocessor',
    'delta_xywh_bbox_coder',
    'mask_target',
    'max_iou_assigner',
    'misc',
    'nms',
    'random_sampler',
    'rpn_head',
    'single_level_roi_extractor',
    'smooth_l1_loss',
    'structures',
}


@pytest.mark.parametrize(
    ('config', 'size'),
    [('mask-rcnn_r50_fpn_1x_coco', 800), ('faster-rcnn_r50_c4_1x_coco', 800), ('vitdet_vitb_100e_coco', 1024)],
)
def test_losses_stay_on_the_device(process, config, size):
    """Nothing mixes devices, backward pass included; our backbones and necks never wait."""
    found = process.submit(observe, detection_losses, config, size).result()
    assert set(found['result'].values()) == {'gpu:0'}
    places = {place.partition('.py')[0] for place in found['waits']}
    assert places - {'backward pass: indexing with a mask'} <= WAITS_BY_DESIGN
