# LARS with 10 epochs of warm-up; BatchNorm and biases neither decay nor adapt. As in SimCLR's code, the learning rate
# is inside the momentum. The trust ratio has |g| + b |w| below, where that code has |g + b w|: a difference of at most
# 2 b |w|, with b = 1e-6.
train_cfg = dict(type='PretrainLoop', max_epochs=800)

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='PretrainOptimWrapperConstructor',
    dtype='bfloat16',
    optimizer=dict(
        type='FastLARS', lr=0.3, momentum=0.9, weight_decay=1e-6, lr_in_momentum=True, separate_norms=True))

# The learning rate is for a global batch of 256 and is scaled to the actual one.
auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=10, convert_to_iter_based=True),
]
