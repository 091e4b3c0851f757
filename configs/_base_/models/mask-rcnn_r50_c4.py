# Mask R-CNN on the fourth-stage map of a ResNet-50, whose last stage is the head: MoCo's evaluation. All BatchNorms
# are trained, synchronized between processes, with one more behind the last stage.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50-caffe-c4.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # `--pretrained CHECKPOINT` sets it, `--pretrained none` removes it.
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None, ignored=['norm.']),
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, style='pytorch', init_cfg=None),
    roi_head=dict(shared_head=dict(type='ResLayerExtraNorm', norm_cfg=norm_cfg, norm_eval=False, style='pytorch')))
