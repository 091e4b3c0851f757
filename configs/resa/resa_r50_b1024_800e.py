# resa_resnet50_4xb256-amp-coslr-800e_in1k: the authors lower the learning rate for stability.
_base_ = './resa_r50_b1024_100e.py'
train_cfg = dict(max_epochs=800)
optim_wrapper = dict(optimizer=dict(lr=0.4))
