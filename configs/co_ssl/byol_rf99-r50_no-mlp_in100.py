# The base of `no-mlp`.
_base_ = './byol_rf99-r50_in100.py'
model = dict(backbone=dict(mlp=None))
