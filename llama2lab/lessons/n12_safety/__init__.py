"""Notebook 12_safety."""
