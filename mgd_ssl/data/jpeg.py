"""Decoding to an array, fast where the file is a plain JPEG and through Pillow where it is anything else."""
