"""The ladder between a pool and the places below it: what goes down before it is lost, and what comes up again."""
