"""Matching Guided Distillation, the algorithm: tensors in, tensors out."""
