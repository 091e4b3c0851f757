# One shared head for vectors and cells.
_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(local_head=dict(projector=None, predictor=None))
