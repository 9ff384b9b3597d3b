"""Notebook 03_pretraining."""
