"""Whole networks: mechanisms put into them, trained, and folded for inference."""
