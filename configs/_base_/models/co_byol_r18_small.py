# CO-BYOL on a ResNet-18 for images of 64 pixels: 3x3 stem without max-pooling, map of 8 x 8.
projector = dict(
    type='NonLinearNeck',
    in_channels=512,
    hid_channels=4096,
    out_channels=256,
    with_bias=True,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=dict(type='SyncBN'))
predictor = dict(projector, in_channels=256)
model = dict(
    type='COBYOL',
    backbone=dict(type='ResNet_CIFAR', depth=18, norm_cfg=dict(type='SyncBN'), zero_init_residual=False),
    neck=projector,
    head=dict(type='BYOLHead', predictor=predictor),
    local_head=dict(type='LocalGlobalHead', projector=projector, predictor=predictor, weight=0.3, num_cells=16))
