# The paper's prototypes: 4,096 anchors in one task, without halving.
_base_ = './vitb.py'
model = dict(head=dict(prototypes=dict(num_anchors=4096, num_tasks=1, anchor_selection='all')))
