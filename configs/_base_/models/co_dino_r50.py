# CO-DINO on a ResNet-50; with `local_head=None` it is DINO. On CPU SyncBN becomes BatchNorm with per-process
# statistics.
num_prototypes = 65536
projector = dict(
    type='DINONeck',
    in_channels=2048,
    hid_channels=2048,
    bottleneck_channels=256,
    num_prototypes=num_prototypes,
    norm_cfg=dict(type='SyncBN'))
model = dict(
    type='CODINO',
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN'), zero_init_residual=False),
    neck=projector,
    head=dict(type='DINOHead', num_prototypes=num_prototypes),
    # Scores are (batch, cells, prototypes): 49 cells would take gigabytes.
    local_head=dict(type='LocalGlobalHead', projector=projector, weight=0.3, num_cells=9))
