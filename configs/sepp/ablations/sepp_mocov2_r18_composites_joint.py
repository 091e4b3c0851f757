# Ordinary and semantic positive in the same step.
_base_ = '../sepp_mocov2_r18_composites.py'
train_dataloader = dict(dataset=dict(dataset=dict(mode='joint')))
