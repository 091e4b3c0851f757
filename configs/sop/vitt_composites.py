# [CLS] and MIM on a ViT twice as wide and 1.5 times as deep as that of the quickstart: at most 2 hours on 2 CPU cores.
_base_ = [
    '../_base_/models/sop_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_adamw.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768)),
    neck=dict(in_channels=192))
train_cfg = dict(max_epochs=15)
train_pipeline = [*_base_.train_pipeline[:-1], *_base_.mask_transforms]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
custom_hooks = [_base_.teacher_hook, _base_.knn_hook, dict(type='ReportHook')]
