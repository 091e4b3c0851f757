# A short run on photo composites with a fast teacher.
train_cfg = dict(type='PretrainLoop', max_epochs=12)

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='PretrainOptimWrapperConstructor',
    dtype='float32',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.04),
    clip=dict(type='per_tensor', max_norm=3.0))
auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]

teacher_hook = dict(type='TeacherHook', momentum=0.98, end_momentum=1.0)
