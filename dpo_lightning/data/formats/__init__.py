"""Row formats: rows into examples, or every reason why not."""
