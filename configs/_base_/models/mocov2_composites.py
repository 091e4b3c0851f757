# MoCo v2 for photo composites of 48 pixels: a ResNet-18 of a quarter of the usual width.
model = dict(
    type='SemanticMoCo',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(2, 2, 2, 2),
        zero_init_residual=False),
    neck=dict(type='MoCoV2Neck', in_channels=128, hid_channels=512, out_channels=128, with_avg_pool=True),
    head=dict(type='WeightedContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.1),
    queue_len=2048,
    feat_dim=128,
    momentum=0.02)
