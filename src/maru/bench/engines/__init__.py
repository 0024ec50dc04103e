"""Serving engines under measurement: each in a process of its own, driven by token ids, with or without a cache."""
