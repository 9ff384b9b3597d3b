"""Notebook 11_evaluation_and_safety."""
