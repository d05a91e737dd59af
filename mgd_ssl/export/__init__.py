"""The student in the formats of other libraries, loaded back by them and compared."""
