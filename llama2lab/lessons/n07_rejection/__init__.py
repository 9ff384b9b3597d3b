"""Notebook 07_rejection_sampling."""
