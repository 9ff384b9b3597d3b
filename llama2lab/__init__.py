"""Llama 2's whole recipe in miniature: one section of the report, one module, one notebook."""

__version__ = "0.1.0"
