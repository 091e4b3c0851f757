# A short run on photo composites with SGD and a fast teacher.
train_cfg = dict(type='PretrainLoop', max_epochs=12)

optim_wrapper = dict(
    type='PretrainOptimWrapper', dtype='float32', optimizer=dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=1e-4))
auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]

teacher_hook = dict(type='TeacherHook', momentum=0.98, end_momentum=1.0)
