# As many updates as the baseline: half of the time a partner takes the place of the second view.
_base_ = './sepp_mocov2_r18_composites.py'
train_dataloader = dict(dataset=dict(dataset=dict(mode='replace', partner_prob=0.5)))
