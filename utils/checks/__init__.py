"""What is asked of a learner's functions: one module per chapter, and the engine that they share.

`from utils.checks.tokenization import check, hint` gives a chapter's two calls; `engine.py` explains how a
chapter states its exercises.
"""
