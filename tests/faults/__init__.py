"""Faults put in on purpose: kills, full disks, damaged files, hostile input. Short rounds in `make test`, long ones by
`make faults`."""
