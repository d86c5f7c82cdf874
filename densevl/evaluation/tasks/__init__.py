"""What an evaluation predicts, counts and reports: one file per task."""
