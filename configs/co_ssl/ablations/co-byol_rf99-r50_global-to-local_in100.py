# Only the student's vector predicts the teacher's cells, through a local projector that is not trained.
_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(local_head=dict(directions='global_to_local'))
