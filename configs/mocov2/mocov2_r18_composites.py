# MoCo v2 on photo composites, 2 processes of 64 images: for 2 CPU cores.
_base_ = [
    '../_base_/models/mocov2_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/contrastive_composites.py',
    '../_base_/default_runtime.py',
]
custom_hooks = [_base_.knn_hook, dict(type='ReportHook')]
