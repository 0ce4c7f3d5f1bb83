"""The package that the notebooks call: one or two modules a chapter, their checks,
models and views.
"""

from utils import moved

moved.install()
