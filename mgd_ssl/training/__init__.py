"""The one loop, which knows no task."""
