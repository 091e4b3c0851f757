# Without a second network and with the symmetric objective: as the paper writes it.
_base_ = '../resa_r18_composites.py'
model = dict(use_teacher=False, assignment_source='online', head=dict(symmetric=True, predictor=None))
