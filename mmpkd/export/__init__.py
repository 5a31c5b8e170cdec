"""A trained student as one file (`student_file.py`), and that student in the formats of other software."""
