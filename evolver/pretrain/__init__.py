"""`evorec pretrain`: a small base model that has learnt the task from a catalog's past, or from generated stores.

What it must learn is to read a history and labelled candidates, and to answer with the label of the candidate that
fits. Trained on the answer alone, a small model takes long to bind labels; what helps is a schedule from few candidates
and short histories to the full prompt, and an auxiliary loss: a linear head scores every candidate at its label's
position in the middle of the network, so that the layers above find a score there that the answer position can read.
"""
