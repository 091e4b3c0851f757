# CO-MoCoV3 on a ResNet-50; with `local_head=None` it is MoCo v3. On CPU SyncBN becomes BatchNorm with per-process
# statistics.
projector = dict(
    type='NonLinearNeck',
    in_channels=2048,
    hid_channels=4096,
    out_channels=256,
    with_last_bn_affine=False,
    with_avg_pool=False,
    norm_cfg=dict(type='SyncBN'))
predictor = dict(
    type='NonLinearNeck',
    in_channels=256,
    hid_channels=4096,
    out_channels=256,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=dict(type='SyncBN'))
model = dict(
    type='COMoCoV3',
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN'), zero_init_residual=False),
    neck=projector,
    head=dict(type='InfoNCEHead', predictor=predictor, temperature=1.0),
    # Logits are (cells, batch, global batch): the head computes them for 8 cells at a time.
    local_head=dict(type='LocalGlobalHead', projector=projector, predictor=predictor, weight=0.3, num_cells=49))
