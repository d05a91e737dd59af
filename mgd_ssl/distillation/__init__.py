"""A teacher as loss terms: no training, no folders."""
