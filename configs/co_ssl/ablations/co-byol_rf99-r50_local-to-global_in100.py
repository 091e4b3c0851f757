# Only the student's cells predict the teacher's vector.
_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(local_head=dict(directions='local_to_global'))
