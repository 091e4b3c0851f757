# CO-BYOL for photo composites of 48 pixels: a ResNet-18 of a quarter of the usual width, all 9 cells of its 3 x 3 map.
projector = dict(
    type='NonLinearNeck',
    in_channels=128,
    hid_channels=512,
    out_channels=128,
    with_bias=True,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=dict(type='BN1d'))
predictor = dict(projector, in_channels=128)
model = dict(
    type='COBYOL',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(2, 2, 2, 2),
        zero_init_residual=False),
    neck=projector,
    head=dict(type='BYOLHead', predictor=predictor),
    local_head=dict(type='LocalGlobalHead', projector=projector, predictor=predictor, weight=0.3))
