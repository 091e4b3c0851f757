# ReSA on ResNet-18 for small images: no predictor, and no zero initialization of the residual branches.
model = dict(
    type='ReSA',
    backbone=dict(type='ResNet_CIFAR', depth=18, zero_init_residual=False),
    neck=dict(
        type='NonLinearNeck',
        in_channels=512,
        hid_channels=2048,
        out_channels=512,
        num_layers=3,
        with_bias=True,
        with_last_bias=True,
        with_last_bn_affine=False,
        with_avg_pool=False,
        norm_cfg=dict(type='BN1d')),
    head=dict(type='ReSAHead', temperature=0.4),
    assigner=dict(type='SinkhornAssigner', epsilon=0.05, iterations=3))
