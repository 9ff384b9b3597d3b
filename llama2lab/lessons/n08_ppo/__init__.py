"""Notebook 08_ppo."""
