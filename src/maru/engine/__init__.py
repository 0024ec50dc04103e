"""The doors to inference engines: each file fits one engine and keeps that engine's words to itself.

A door promises to fail open: whatever goes wrong in the pool is a miss for the engine, counted and logged
once. Nothing here is imported by `import maru`; an engine's libraries load with its door.
"""
