"""Backbones by name, their taps, and weights loaded strictly."""
