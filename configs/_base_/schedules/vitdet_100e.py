# 100 epochs of batches of 64 with layer-wise decay of the learning rate, as in ViTDet.
train_cfg = dict(type='mmpretrain.PretrainLoop', max_epochs=100, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='mmpretrain.PretrainOptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    # As in ViTDet's code all biases decay, and so do the norms of pyramid and heads, but not those of the transformer.
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        norm_decay_mult=0.0,
        custom_keys={
            'cls_token': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
            'neck.': dict(decay_mult=1.0),
            'roi_head.': dict(decay_mult=1.0)
        }))
auto_scale_lr = dict(base_batch_size=64, enable=True)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=100, milestones=[89, 96], gamma=0.1),
]
