_base_ = './sop_100e.py'

train_cfg = dict(max_epochs=800)
