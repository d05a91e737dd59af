"""What a training would meet on this machine, before it is started."""
