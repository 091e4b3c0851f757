# CO-MoCoV3 on photo composites.
_base_ = [
    '../_base_/models/co_moco-v3_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_adamw.py',
    '../_base_/default_runtime.py',
]
custom_hooks = [_base_.teacher_hook, _base_.knn_hook, dict(type='ReportHook')]
