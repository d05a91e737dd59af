"""Accuracies of frozen features and classifiers."""
