"""Notebook 10_five_rounds."""
