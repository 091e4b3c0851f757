# The whole method, [CLS] and MIM, on a small ViT and photo composites: minutes on 2 CPU cores, 2 processes of 64
# images.
_base_ = [
    '../_base_/models/sop_composites.py',
    '../_base_/datasets/composites_2views.py',
    '../_base_/schedules/composites_adamw.py',
    '../_base_/default_runtime.py',
]
train_pipeline = [*_base_.train_pipeline[:-1], *_base_.mask_transforms]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
train_cfg = dict(max_epochs=6)
custom_hooks = [_base_.teacher_hook, _base_.knn_hook, dict(type='ReportHook')]
