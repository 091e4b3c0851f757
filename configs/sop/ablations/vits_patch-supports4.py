# Local prototypes with supports; the paper finds a single member sufficient.
_base_ = '../vits.py'
model = dict(target_generator=dict(prototypes=dict(num_supports=4)))
