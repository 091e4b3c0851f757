# simclr_resnet18_1xb256-bf16-coslr-400e_stl10: images of 96 pixels.
_base_ = [
    '../_base_/models/simclr.py',
    '../_base_/datasets/stl10_2views.py',
    '../_base_/schedules/contrastive_sgd.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(depth=18), neck=dict(in_channels=512, hid_channels=512), head=dict(temperature=0.2))
train_cfg = dict(max_epochs=400)
optim_wrapper = dict(optimizer=dict(lr=0.06, weight_decay=5e-4))
custom_hooks = [_base_.knn_hook]
# SimCLR's stronger crops and color changes.
jitter = dict(type='FastColorJitter', brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
view_pipeline = [
    dict(_base_.view_pipeline[0], crop_ratio_range=(0.08, 1.0)),
    dict(_base_.view_pipeline[1], transforms=[jitter]),
    *_base_.view_pipeline[2:],
]
train_pipeline = [dict(_base_.train_pipeline[0], transforms=[view_pipeline]), _base_.train_pipeline[1]]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
