# mask-rcnn_r50-linear_8xb2-ms-1x_coco: linear layers for classes, boxes and masks on one map of the frozen
# backbone; proposals come from the usual convolution.
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(frozen_stages=4, norm_eval=True, out_indices=(3, )),
    neck=None,
    rpn_head=dict(in_channels=2048, feat_channels=256, anchor_generator=dict(scales=[2, 4, 8, 16], strides=[32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=2048, featmap_strides=[32]),
        bbox_head=dict(_delete_=True, type='BBoxHead', with_avg_pool=True, in_channels=2048, num_classes=80),
        mask_roi_extractor=dict(out_channels=2048, featmap_strides=[32]),
        mask_head=dict(num_convs=0, in_channels=2048, upsample_cfg=dict(type='bilinear', scale_factor=2))))
