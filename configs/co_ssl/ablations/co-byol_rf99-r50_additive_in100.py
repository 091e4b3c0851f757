# The local term is added to the full global one.
_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(local_head=dict(combination='additive'))
