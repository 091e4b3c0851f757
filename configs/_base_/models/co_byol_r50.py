# CO-BYOL on a ResNet-50; with `local_head=None` it is BYOL. On CPU SyncBN becomes BatchNorm with per-process
# statistics.
projector = dict(
    type='NonLinearNeck',
    in_channels=2048,
    hid_channels=4096,
    out_channels=256,
    with_bias=True,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=dict(type='SyncBN'))
predictor = dict(projector, in_channels=256)
model = dict(
    type='COBYOL',
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN'), zero_init_residual=False),
    neck=projector,
    head=dict(type='BYOLHead', predictor=predictor),
    local_head=dict(type='LocalGlobalHead', projector=projector, predictor=predictor, weight=0.3, num_cells=49))
