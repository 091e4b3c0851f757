# mask-rcnn_r18-narrow-linear_1xb8-4e_composites: linear layers for classes, boxes and masks on one map of the frozen
# backbone; proposals come from the usual convolution.
_base_ = './mask-rcnn_r18_fpn_composites.py'
model = dict(
    backbone=dict(frozen_stages=4, norm_eval=True, out_indices=(3, )),
    neck=None,
    rpn_head=dict(in_channels=128, feat_channels=64, anchor_generator=dict(scales=[1.5, 3, 6], strides=[16])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, featmap_strides=[16]),
        bbox_head=dict(_delete_=True, type='BBoxHead', with_avg_pool=True, in_channels=128, num_classes=10),
        mask_roi_extractor=dict(out_channels=128, featmap_strides=[16]),
        mask_head=dict(num_convs=0, in_channels=128, upsample_cfg=dict(type='bilinear', scale_factor=2))))
