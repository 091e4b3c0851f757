# Objective and gradient of the first released code on 4 GPUs, with which the published checkpoints were probably
# trained.
_base_ = '../resa_r50_b1024_100e.py'
model = dict(head=dict(symmetric=True, grad_scale=0.25))
