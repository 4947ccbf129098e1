"""The native sampler: how the next token comes about, with continuous batching."""
