# resa_resnet50_4xb256-amp-coslr-200e_in1k
_base_ = './resa_r50_b1024_100e.py'
train_cfg = dict(max_epochs=200)
