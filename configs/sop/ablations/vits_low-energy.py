# The anchor selection that the released code probably intended.
_base_ = '../vits.py'
model = dict(head=dict(prototypes=dict(anchor_selection='low_energy')))
