"""Models: loading, presets, adapters, the head, log-probabilities, and the fused decoder of the Llama layout."""
