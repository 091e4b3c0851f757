# vitdet_vit-tiny-p8-linear_1xb8-4e_composites: linear layers for classes, boxes and masks on one map of the frozen
# backbone; proposals come from the usual convolution.
_base_ = [
    '../_base_/models/vitdet_vitt_composites.py',
    '../_base_/datasets/composites_scenes.py',
    '../_base_/schedules/detection_vit_composites.py',
    '../_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(frozen_stages=6),
    neck=None,
    rpn_head=dict(in_channels=192, feat_channels=64, anchor_generator=dict(scales=[3, 6, 12], strides=[8])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=192, featmap_strides=[8]),
        bbox_head=dict(_delete_=True, type='BBoxHead', with_avg_pool=True, in_channels=192, num_classes=10),
        mask_roi_extractor=dict(out_channels=192, featmap_strides=[8]),
        mask_head=dict(num_convs=0, in_channels=192, upsample_cfg=dict(type='bilinear', scale_factor=2))))
