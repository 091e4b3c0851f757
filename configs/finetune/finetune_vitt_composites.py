# finetune_vit-tiny-p8_1xb64-coslr-10e_composites: the ViT of sop/vitt_composites.py.
_base_ = [
    '../_base_/models/classifier_vit.py',
    '../_base_/datasets/composites_finetune.py',
    '../_base_/schedules/finetune_composites.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='WindowedVisionTransformer',
        window_size=None,
        out_type='raw',
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=48,
        patch_size=8,
        stem='conv'),
    neck=dict(type='GlobalNeck'),
    head=dict(num_classes=10, in_channels=192, init_cfg=dict(std=0.01)))
