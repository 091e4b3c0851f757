# SOP for photo composites: at this scale the released 64 anchors learn slowly, 512 of a bank of 2,048 with a little
# KoLeo faster (docs/recipes.md). A ViT on images of 48 pixels in patches of 8.
embed_dims = 128
bank = dict(type='SupportEmbeddingBank', size=2048, embed_dims=embed_dims)
model = dict(
    type='SOP',
    backbone=dict(
        type='MaskedVisionTransformer',
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=48,
        patch_size=8,
        stem='conv'),
    neck=dict(
        type='SOPNeck',
        in_channels=96,
        hid_channels=512,
        out_channels=embed_dims,
        norm_cfg=dict(type='BN1d'),
        norm_output=True),
    head=dict(
        type='SOPHead',
        koleo_weight=0.05,
        prototypes=dict(
            type='PrototypeSampler', bank=bank, num_anchors=512, num_supports=4, num_tasks=1, anchor_selection='all')),
    target_generator=dict(
        type='SOPMIMTargetGenerator',
        prototypes=dict(
            type='PrototypeSampler', bank=bank, num_anchors=512, num_supports=0, num_tasks=1, anchor_selection='all')),
    mim_head=dict(type='SOPMIMHead'))

# Patches of 8 pixels
mask_transforms = [
    dict(type='BlockMaskGenerator', grid=(6, 6), mask_ratio=(0.0, 0.3), mask_ratio_jitter=(0.0, 0.2)),
    # As an algorithm key the mask stays an array on the host, where the model computes the masked positions.
    dict(type='PackInputs', algorithm_keys=['mask']),
]
