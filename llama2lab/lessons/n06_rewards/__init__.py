"""Notebook 06_reward_models."""
