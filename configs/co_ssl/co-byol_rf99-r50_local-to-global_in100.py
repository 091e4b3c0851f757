# The student's cells predict the teacher's vector only.
_base_ = './co-byol_rf99-r50_in100.py'
model = dict(local_head=dict(directions='local_to_global'))
