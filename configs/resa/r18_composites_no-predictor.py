_base_ = './r18_composites.py'
model = dict(head=dict(predictor=None))
