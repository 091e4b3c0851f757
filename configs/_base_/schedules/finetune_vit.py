# BEiT's recipe as SOP and iBOT use it on ViT-S: 200 epochs, 20 of them warm-up; the learning rate is one of those that
# they try.
train_cfg = dict(type='PretrainLoop', max_epochs=200, val_interval=5)

optim_wrapper = dict(
    type='PretrainOptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    dtype='bfloat16',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        layer_decay_rate=0.75,
        flat_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0))))
auto_scale_lr = dict(base_batch_size=1024, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=20, convert_to_iter_based=True),
]
custom_hooks = []
