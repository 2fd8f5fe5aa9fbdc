"""Attention over trees of tokens, as pure tensor code: dense masks, FlexAttention blocks, and CPU blocks."""
