"""Preference collection from people: store, files, form, agreement (Llama 2, section 3.2.1).

Nothing here imports torch or transformers: an annotator's first item shows within seconds.
"""
