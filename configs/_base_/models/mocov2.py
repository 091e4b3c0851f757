# MoCo v2 on a ResNet-50. SemanticMoCo without weights and masks is MMPretrain's MoCo, with similarities in fp32.
model = dict(
    type='SemanticMoCo',
    backbone=dict(type='ResNet', depth=50, zero_init_residual=False),
    neck=dict(type='MoCoV2Neck', in_channels=2048, hid_channels=2048, out_channels=128, with_avg_pool=True),
    head=dict(type='WeightedContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2),
    queue_len=65536,
    feat_dim=128,
    momentum=0.001)
