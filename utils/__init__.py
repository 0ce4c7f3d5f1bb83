"""The package that the notebooks call: one module per chapter, their checks, models and
views.
"""
