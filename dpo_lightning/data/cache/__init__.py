"""The cache of encoded rows: read, checked and encoded once, then memory-mapped by every run and rank."""
