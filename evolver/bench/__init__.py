"""`evorec bench`: EvoRec against other ways of learning from a window, on a user's own data."""
