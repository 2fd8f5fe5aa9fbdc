"""`evaluate`: what a trained model prefers, how far it moved from its reference, and how it answers."""
