# About two minutes on 2 CPU cores.
train_cfg = dict(type='PretrainLoop', max_epochs=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='PretrainOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip=dict(type='global_norm', max_norm=5.0))
auto_scale_lr = dict(base_batch_size=16, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
custom_hooks = [dict(type='SegmentationImagesHook')]
