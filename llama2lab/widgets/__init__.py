"""Widgets of the notebooks. Each stands on plain functions of the same module, which give the same data and pictures
without a browser."""
