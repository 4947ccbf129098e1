"""The types that every package builds on: rollouts (standard library only), training (tensors), and the batch that a
loss reads."""
