"""A training run: batches, the model that learns, the loop, checkpoints."""
