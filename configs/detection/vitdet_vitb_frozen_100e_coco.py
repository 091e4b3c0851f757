# vitdet_vit-base-p16-frozen_32xb2-lsj-100e_coco: pyramid and heads are trained.
_base_ = './vitdet_vitb_100e_coco.py'
model = dict(backbone=dict(frozen_stages=12, drop_path_rate=0.0))
