"""`python -m maru.bench tenants`: what one tenant sees of another by the clock, what keeping them apart costs, and what
a share is worth beside a noisy neighbour.
"""
