"""What is asked of a learner's functions: a module for each module of solutions, and what these share.

`from utils.checks.tokenization import check, hint, compare` gives a chapter's three calls; `engine.py` explains how a
chapter states its exercises, `models.py` builds the small random models that answers are tried on.
"""
