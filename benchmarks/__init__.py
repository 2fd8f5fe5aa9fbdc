"""What a preference step costs here, and what it costs elsewhere: one command each, public tools only."""
