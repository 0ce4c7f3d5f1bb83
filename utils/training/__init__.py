"""How the shipped weights were made: `python -m utils.training train [MODEL]`, resumable, on CPU or GPU."""
