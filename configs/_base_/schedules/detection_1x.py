# 12 epochs of batches of 16; the learning rate is scaled to the actual batch size.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'
train_cfg = dict(type='mmpretrain.PretrainLoop')
optim_wrapper = dict(type='mmpretrain.PretrainOptimWrapper')
auto_scale_lr = dict(enable=True)
