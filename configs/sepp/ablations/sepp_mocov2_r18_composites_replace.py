# As many updates as the baseline: half of the time the second view shows a partner.
_base_ = '../sepp_mocov2_r18_composites.py'
train_dataloader = dict(dataset=dict(dataset=dict(mode='replace', partner_prob=0.5)))
