"""The demo's images and its table."""
