"""`python -m benchmarks gpu`: what this package does on a GPU, in ten minutes; with `--cpu` a trial at toy size."""
