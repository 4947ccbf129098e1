"""Models: loading, presets, LoRA, the output head, log-probabilities, and the fused decoder for the Llama layout."""
