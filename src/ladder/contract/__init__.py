"""The types everything is written against: rollouts (standard library only), training (tensors), the batch
a loss sees."""
