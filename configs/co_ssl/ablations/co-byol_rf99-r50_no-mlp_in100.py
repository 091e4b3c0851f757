# The pooled vector is the global representation.
_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(backbone=dict(mlp=None))
