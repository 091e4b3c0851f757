# LARS for small datasets at a batch of 256: solo-learn's recipe, in which the trust ratio only shortens steps.
train_cfg = dict(type='PretrainLoop', max_epochs=400)

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='PretrainOptimWrapperConstructor',
    dtype='bfloat16',
    optimizer=dict(type='FastLARS', lr=0.5, momentum=0.9, weight_decay=1e-6, eta=0.02, clip=True, separate_norms=True))

auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=10, convert_to_iter_based=True)
]

custom_hooks = [dict(type='TeacherHook', momentum=0.99, end_momentum=1.0)]
