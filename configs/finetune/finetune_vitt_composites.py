# finetune_vit-tiny-p8_1xb64-coslr-10e_composites: the ViT of sop/vitt_composites.py.
_base_ = [
    '../_base_/models/classifier_vit.py',
    '../_base_/datasets/composites_finetune.py',
    '../_base_/schedules/finetune_vit.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='MaskedVisionTransformer',
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=48,
        patch_size=8,
        stem='conv'),
    neck=dict(type='GlobalNeck'),
    head=dict(num_classes=10, in_channels=192, init_cfg=dict(std=0.01)))
train_cfg = dict(max_epochs=10)
optim_wrapper = dict(dtype='float32', optimizer=dict(lr=4e-3))
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
