_base_ = '../resa_r18_composites.py'
model = dict(assignment_source='online')
