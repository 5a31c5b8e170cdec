"""A trained student as one file (`student_file`), and in the formats of other software (`formats`)."""
