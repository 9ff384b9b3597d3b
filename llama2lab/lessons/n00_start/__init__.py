"""Notebook 00_start_here."""
