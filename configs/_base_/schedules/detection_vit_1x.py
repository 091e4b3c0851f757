# 12 epochs of batches of 16 with layer-wise decay of the learning rate, as in iBOT's evaluation.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'
train_cfg = dict(type='mmpretrain.PretrainLoop')
optim_wrapper = dict(
    _delete_=True,
    type='mmpretrain.PretrainOptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        layer_decay_rate=0.75,
        flat_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0))))
auto_scale_lr = dict(enable=True)
