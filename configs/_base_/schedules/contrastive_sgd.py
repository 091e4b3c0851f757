# SGD with a cosine, without warm-up: MoCo v2 and, with other values, SimSiam. Weight decay applies to all parameters.
train_cfg = dict(type='PretrainLoop', max_epochs=200)

optim_wrapper = dict(
    type='PretrainOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4))

# The learning rate is for a global batch of 256 and is scaled to the actual one.
auto_scale_lr = dict(base_batch_size=256, enable=True)

param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True)]
