# vitdet_vit-tiny-p8-frozen_1xb8-4e_composites: pyramid and heads are trained.
_base_ = [
    '../_base_/models/vitdet_vitt_composites.py',
    '../_base_/datasets/composites_scenes.py',
    '../_base_/schedules/detection_vit_composites.py',
    '../_base_/detection_runtime.py',
]
model = dict(backbone=dict(frozen_stages=6))
