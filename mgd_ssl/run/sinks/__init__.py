"""Where the numbers of a run go beside its own folder: services that follow experiments, one a file, named by --log."""
