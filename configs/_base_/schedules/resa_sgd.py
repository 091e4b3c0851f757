# ReSA for ResNets, 100 epochs at a global batch of 256. Weight decay applies to all parameters, including BatchNorm's.
train_cfg = dict(type='PretrainLoop', max_epochs=100)

optim_wrapper = dict(
    type='PretrainOptimWrapper', dtype='float16', optimizer=dict(type='SGD', lr=0.5, momentum=0.9, weight_decay=1e-5))

# The learning rate is for a global batch of 256 and is scaled to the actual one.
auto_scale_lr = dict(base_batch_size=256, enable=True)

# The cosine ends at a tenth of the peak: with a smaller learning rate, weight decay would dominate.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.1, by_epoch=True, begin=2, convert_to_iter_based=True),
]

# The teacher uses the momentum of the step in which it is used.
teacher_hook = dict(type='TeacherHook', momentum=0.996, end_momentum=1.0, lead=1)
custom_hooks = [teacher_hook]
