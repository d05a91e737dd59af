"""The result of an evaluation as a file that a report can read: never a number without its protocol."""
