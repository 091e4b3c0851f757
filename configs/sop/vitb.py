# sop_vit-base-p16_8xb128-bf16-coslr-400e_in1k: the released preset, multi-crop.
_base_ = [
    '../_base_/models/sop_vit.py',
    '../_base_/datasets/imagenet_sop.py',
    '../_base_/schedules/sop.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(arch='base'), neck=dict(in_channels=768))

train_cfg = dict(max_epochs=400)
optim_wrapper = dict(optimizer=dict(lr=7.5e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[1].eta_min = 2e-6

custom_hooks = [
    dict(type='TeacherHook', momentum=0.996, end_momentum=1.0),
    dict(type='TeacherTemperatureHook', start=0.04, end=0.07, warmup_epochs=50)
]
