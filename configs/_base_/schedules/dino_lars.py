# DINO on ResNets: LARS as in the authors' arguments for ResNet-50. Prototypes are frozen during the first epoch.
train_cfg = dict(type='PretrainLoop', max_epochs=100)

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='PretrainOptimWrapperConstructor',
    dtype='bfloat16',
    optimizer=dict(type='FastLARS', lr=0.3, momentum=0.9, weight_decay=1e-6, eta=0.001))

# The learning rate is for a global batch of 256 and is scaled to the actual one.
auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0048, by_epoch=True, begin=10, convert_to_iter_based=True)
]

custom_hooks = [
    dict(type='TeacherHook', momentum=0.996, end_momentum=1.0),
    dict(type='TeacherTemperatureHook', start=0.04, end=0.07, warmup_epochs=50),
    dict(type='FreezePrototypesHook', epochs=1)
]
