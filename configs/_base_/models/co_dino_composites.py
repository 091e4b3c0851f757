# CO-DINO for photo composites of 48 pixels: a ResNet-18 of a quarter of the usual width, all 9 cells of its 3 x 3 map.
num_prototypes = 1024
projector = dict(
    type='DINONeck',
    in_channels=128,
    hid_channels=512,
    bottleneck_channels=128,
    num_prototypes=num_prototypes,
    norm_cfg=dict(type='BN1d'))
model = dict(
    type='CODINO',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(2, 2, 2, 2),
        zero_init_residual=False),
    neck=projector,
    head=dict(type='DINOHead', num_prototypes=num_prototypes),
    local_head=dict(type='LocalGlobalHead', projector=projector, weight=0.3))
