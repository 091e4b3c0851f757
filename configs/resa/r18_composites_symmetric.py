_base_ = './r18_composites.py'
model = dict(head=dict(symmetric=True))
