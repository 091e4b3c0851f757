# Control: anchors frozen as vectors once the bank is full.
_base_ = '../vitt_composites.py'
model = dict(head=dict(prototypes=dict(fix_anchors_after=16)))
