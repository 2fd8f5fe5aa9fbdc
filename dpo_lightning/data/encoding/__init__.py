"""Encoding: examples into token ids, through the chat template and the tokenizer."""
