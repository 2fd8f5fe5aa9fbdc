"""A run on disk: its folder, output folders, resuming, the lineage of its model, and its memory estimate."""
