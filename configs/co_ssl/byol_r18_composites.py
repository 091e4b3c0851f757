# BYOL on photo composites.
_base_ = [
    '../_base_/models/co_byol_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_sgd.py',
    '../_base_/default_runtime.py',
]
model = dict(type='SiameseBYOL', local_head=None)
custom_hooks = [_base_.teacher_hook, _base_.knn_hook, dict(type='ReportHook')]
