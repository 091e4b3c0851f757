_base_ = '../vits.py'
model = dict(head=dict(prototypes=dict(num_supports=1)))
