"""The data path: files into rows, rows into examples, examples into token ids and batches."""
