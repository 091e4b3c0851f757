# All 256 anchors of one task are kept, without halving.
_base_ = '../vits.py'
model = dict(head=dict(prototypes=dict(num_anchors=256, num_tasks=1, anchor_selection='all')))
