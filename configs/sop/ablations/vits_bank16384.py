_base_ = '../vits.py'
model = dict(head=dict(prototypes=dict(bank=dict(size=16384))))
