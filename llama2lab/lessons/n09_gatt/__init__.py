"""Notebook 09_ghost_attention."""
