# DINO on photo composites, minutes on 2 CPU cores: 2 processes of 64 images.
_base_ = [
    '../_base_/models/co_dino_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_adamw.py',
    '../_base_/default_runtime.py',
]
model = dict(type='DINO', local_head=None)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
custom_hooks = [
    _base_.teacher_hook,
    dict(type='TeacherTemperatureHook', start=0.04, end=0.04),
    dict(type='FreezePrototypesHook', epochs=1),
    _base_.knn_hook,
    dict(type='ReportHook')
]
