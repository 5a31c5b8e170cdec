"""Opens what is sealed, and scores the students on it: the ledger, the external cohort, the scores."""
