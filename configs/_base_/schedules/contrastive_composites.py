# A short run on photo composites with SGD. The learning rate is for the global batch of 128 and is not scaled:
# SimSiam's predictor keeps it as a constant.
train_cfg = dict(type='PretrainLoop', max_epochs=12)

optim_wrapper = dict(
    type='PretrainOptimWrapper', dtype='float32', optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=5e-4))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
