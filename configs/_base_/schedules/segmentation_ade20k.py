# 128 epochs of 20,210 images in batches of 16: 160k iterations.
train_cfg = dict(type='PretrainLoop', max_epochs=128, val_interval=16)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='PretrainOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=8e-4, weight_decay=0.05))
auto_scale_lr = dict(base_batch_size=16, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0, power=1.0, by_epoch=True, convert_to_iter_based=True),
]
custom_hooks = [dict(type='SegmentationImagesHook')]
