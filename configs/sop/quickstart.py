# The whole method, [CLS] and MIM, on a small ViT and photo composites: minutes on 2 CPU cores, 2 processes of 64 pictures.
# The released 64 anchors do not learn at this scale; 512 of a bank of 2,048 with a little KoLeo do (docs/recipes.md).
_base_ = [
    '../_base_/datasets/composites.py',
    '../_base_/datasets/composites_knn.py',
    '../_base_/schedules/sop.py',
    '../_base_/default_runtime.py',
]
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
            type='PrototypeSampler',
            bank=bank,
            num_anchors=512,
            num_supports=4,
            num_tasks=1,
            anchor_selection='all')),
    target_generator=dict(
        type='SOPMIMTargetGenerator',
        prototypes=dict(
            type='PrototypeSampler',
            bank=bank,
            num_anchors=512,
            num_supports=0,
            num_tasks=1,
            anchor_selection='all')),
    mim_head=dict(type='SOPMIMHead'))

train_cfg = dict(max_epochs=7)
optim_wrapper = dict(dtype='float32', optimizer=dict(lr=4e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=25), throughput=dict(interval=25))
log_processor = dict(window_size=25)
custom_hooks = [
    dict(type='TeacherHook', momentum=0.98, end_momentum=1.0),
    _base_.knn_hook,
    dict(type='ReportHook'),
]
