# Ten epochs on the composites.
_base_ = './finetune_vit.py'
train_cfg = dict(max_epochs=10)
optim_wrapper = dict(dtype='float32', optimizer=dict(lr=4e-3))
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
