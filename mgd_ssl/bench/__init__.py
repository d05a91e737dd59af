"""What `mgd-ssl bench` tells of this machine."""
