"""Notebook 01_tokenizer_and_data."""
