# SOP for 100 epochs. Schedules change in every iteration and span the whole run.
train_cfg = dict(type='PretrainLoop', max_epochs=100)

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='PretrainOptimWrapperConstructor',
    dtype='bfloat16',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.04),
    clip=dict(type='per_tensor', max_norm=3.0))

# The learning rate is for a global batch of 256 and is scaled to the actual one.
auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=10, convert_to_iter_based=True),
    # 0.04 to 0.4; as a ratio, so that parameters without weight decay stay without
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=10,
        by_epoch=True,
        convert_to_iter_based=True)
]

custom_hooks = [
    dict(type='TeacherHook', momentum=0.996, end_momentum=1.0),
    dict(type='TeacherTemperatureHook', start=0.04, end=0.07, warmup_epochs=30)
]
