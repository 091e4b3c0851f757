# mask-rcnn_r18-narrow-fpn-frozen_1xb8-4e_composites: pyramid and heads are trained.
_base_ = './mask-rcnn_r18_fpn_composites.py'
model = dict(backbone=dict(frozen_stages=4, norm_eval=True))
