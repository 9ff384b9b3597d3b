"""Notebook 05_preferences."""
