# What the released code does without options: two views, 100 epochs, a constant temperature, 30 % masked everywhere.
_base_ = [
    '../../_base_/models/sop_vit.py',
    '../../_base_/datasets/imagenet_sop_2views.py',
    '../../_base_/schedules/sop.py',
    '../../_base_/default_runtime.py',
]

mask = dict(_base_.train_pipeline[2], mask_ratio=0.3, mask_ratio_jitter=0.0)
train_pipeline = [*_base_.train_pipeline[:2], mask, _base_.train_pipeline[3]]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
custom_hooks = [_base_.custom_hooks[0], dict(_base_.custom_hooks[1], end=0.04)]
