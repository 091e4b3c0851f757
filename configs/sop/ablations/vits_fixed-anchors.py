# Anchors are fixed to the vectors of the first step after the bank is full: the collapse of the paper's Table C.7.
_base_ = '../vits.py'
model = dict(head=dict(prototypes=dict(fix_anchors_after=64)))
