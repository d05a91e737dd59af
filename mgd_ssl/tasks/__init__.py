"""What is learnt: a module, its batches, its events."""
