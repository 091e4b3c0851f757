# Mask R-CNN with FPN on a ResNet-50, in MoCo's evaluation: all BatchNorms are trained, synchronized between processes,
# and FPN and the heads have them too, the one for boxes between four convolutions.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # `--pretrained CHECKPOINT` sets it, `--pretrained none` removes it.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None),
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)))
