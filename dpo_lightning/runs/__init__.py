"""A run on disk: its folder, files written whole, resuming, the lineage of its model, and its memory estimate."""
