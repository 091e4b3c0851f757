# SimCLR on a ResNet-50. SemanticSimCLR without weights and masks is MMPretrain's SimCLR, with similarities in fp32 and,
# with several processes, with the gradient that a single process would compute.
model = dict(
    type='SemanticSimCLR',
    backbone=dict(type='ResNet', depth=50, zero_init_residual=True),
    neck=dict(
        type='NonLinearNeck',
        in_channels=2048,
        hid_channels=2048,
        out_channels=128,
        num_layers=2,
        with_avg_pool=True,
        norm_cfg=dict(type='BN1d')),
    head=dict(type='WeightedContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.1))
