"""Places below the pool: what leaves the pool is kept there, and comes back when it is asked for again.

A chunk travels `chunk -> codec -> cipher -> tier` as one object (`envelope`). Everything here moves bytes and knows
nothing of pools; `maru.tiering` decides what goes down and what comes up.
"""
