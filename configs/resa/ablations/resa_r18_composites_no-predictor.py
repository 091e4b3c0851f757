_base_ = '../resa_r18_composites.py'
model = dict(head=dict(predictor=None))
