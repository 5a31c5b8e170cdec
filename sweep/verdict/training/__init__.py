"""The trainings of a confirmation, as sweeps that continue after a kill."""
