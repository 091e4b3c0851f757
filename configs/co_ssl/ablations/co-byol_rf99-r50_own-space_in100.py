# Cells are compared with pooled vectors passed through the local heads instead of the global ones.
_base_ = '../co-byol_rf99-r50_in100.py'
model = dict(local_head=dict(space='own'))
