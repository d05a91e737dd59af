"""Temporary files of processes that were killed while they wrote them, told from those that are being written."""
