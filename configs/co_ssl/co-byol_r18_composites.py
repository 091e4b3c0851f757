# CO-BYOL on photo composites, minutes on 2 CPU cores: 2 processes of 64 images.
_base_ = [
    '../_base_/models/co_byol_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_sgd.py',
    '../_base_/default_runtime.py',
]
custom_hooks = [_base_.teacher_hook, _base_.knn_hook, dict(type='ReportHook')]
