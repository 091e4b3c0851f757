# The base of `co-byol_rf99-r50_no-mlp_in100.py`.
_base_ = '../byol_rf99-r50_in100.py'
model = dict(backbone=dict(mlp=None))
