"""Whether data, teacher and student fit, and whether there is anything to gain, before an hour is spent."""
