# mask-rcnn_r50-fpn-frozen_8xb2-ms-1x_coco: pyramid and heads are trained.
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(frozen_stages=4, norm_eval=True))
