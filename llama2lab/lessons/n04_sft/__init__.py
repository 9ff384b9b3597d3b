"""Notebook 04_supervised_finetuning."""
