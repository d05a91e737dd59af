"""Commands as jobs: processes of this host through torch's elastic launcher, or Slurm jobs through submitit."""
