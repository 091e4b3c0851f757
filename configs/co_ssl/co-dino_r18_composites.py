# CO-DINO on photo composites.
_base_ = [
    '../_base_/models/co_dino_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_adamw.py',
    '../_base_/default_runtime.py',
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
custom_hooks = [
    _base_.teacher_hook,
    dict(type='TeacherTemperatureHook', start=0.04, end=0.04),
    dict(type='FreezePrototypesHook', epochs=1),
    _base_.knn_hook,
    dict(type='ReportHook')
]
