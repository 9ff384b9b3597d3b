"""Notebook 02_transformer."""
