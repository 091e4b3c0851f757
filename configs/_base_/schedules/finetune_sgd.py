# SimCLR's fine-tuning of ResNets: Nesterov momentum, no weight decay, cosine.
train_cfg = dict(type='PretrainLoop', max_epochs=30, val_interval=5)

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='DefaultOptimWrapperConstructor',
    dtype='bfloat16',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.0))
auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True)]
custom_hooks = []
