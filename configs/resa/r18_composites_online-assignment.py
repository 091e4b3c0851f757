_base_ = './r18_composites.py'
model = dict(assignment_source='online')
