# ViT-S/16 with a linear head on [CLS], mixup and CutMix.
model = dict(
    type='ImageClassifier',
    init_cfg=dict(type='PretrainedBackbone', checkpoint=None),
    backbone=dict(
        type='FreezableVisionTransformer', arch='deit-small', img_size=224, patch_size=16, drop_path_rate=0.1),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
