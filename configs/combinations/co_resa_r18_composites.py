# ReSA that also compares unpooled cells with the pooled vector of the other view (CO-SSL).
_base_ = '../resa/resa_r18_composites.py'
local_neck = dict(
    type='NonLinearNeck',
    in_channels=128,
    hid_channels=512,
    out_channels=128,
    with_bias=True,
    with_last_bias=True,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=dict(type='BN1d'))
model = dict(local_head=dict(type='LocalGlobalHead', projector=local_neck, predictor=local_neck, weight=0.3))
