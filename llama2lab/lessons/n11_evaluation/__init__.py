"""Notebook 11_evaluation."""
