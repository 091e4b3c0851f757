# vitdet_vit-base-p16-linear_32xb2-lsj-100e_coco: linear layers for classes, boxes and masks on one map of the frozen
# backbone; proposals come from the usual convolution.
_base_ = './vitdet_vitb_100e_coco.py'
model = dict(
    backbone=dict(frozen_stages=12, drop_path_rate=0.0),
    neck=None,
    rpn_head=dict(in_channels=768, feat_channels=256, anchor_generator=dict(scales=[2, 4, 8, 16, 32], strides=[16])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=768, featmap_strides=[16]),
        bbox_head=dict(_delete_=True, type='BBoxHead', with_avg_pool=True, in_channels=768, num_classes=80),
        mask_roi_extractor=dict(out_channels=768, featmap_strides=[16]),
        mask_head=dict(num_convs=0, in_channels=768, upsample_cfg=dict(type='bilinear', scale_factor=2))))
