# resa_resnet50_1xb256-amp-coslr-800e_in1k
_base_ = './resa_r50_b256_100e.py'
train_cfg = dict(max_epochs=800)
