# ReSA on ResNet-50, with BatchNorm statistics of the global batch if there are several CUDA devices.
sync_bn = 'torch'
model = dict(
    type='ReSA',
    backbone=dict(type='ResNet', depth=50, zero_init_residual=True),
    neck=dict(
        type='NonLinearNeck',
        in_channels=2048,
        hid_channels=2048,
        out_channels=512,
        num_layers=3,
        with_bias=True,
        with_last_bias=True,
        with_last_bn_affine=False,
        with_avg_pool=False,
        norm_cfg=dict(type='BN1d')),
    head=dict(
        type='ReSAHead',
        temperature=0.4,
        predictor=dict(
            type='NonLinearNeck',
            in_channels=512,
            hid_channels=2048,
            out_channels=512,
            with_bias=True,
            with_last_bias=True,
            with_last_bn=False,
            with_avg_pool=False,
            norm_cfg=dict(type='BN1d'))),
    assigner=dict(type='SinkhornAssigner', epsilon=0.05, iterations=3))
