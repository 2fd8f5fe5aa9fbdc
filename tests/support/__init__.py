"""What tests share: tiny models, rows, short runs, and independent calculations."""
