# ReSA for vision transformers: 300 epochs, meant for a global batch of 1,024.
train_cfg = dict(type='PretrainLoop', max_epochs=300)

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    dtype='float16',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.1))

# The learning rate is for a global batch of 256 and is scaled to the actual one.
auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=True, begin=40, convert_to_iter_based=True),
]

# The teacher uses the momentum of the step in which it is used.
custom_hooks = [dict(type='TeacherHook', momentum=0.996, end_momentum=1.0, lead=1)]
