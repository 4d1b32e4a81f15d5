"""What turns pictures and words into numbers, for metrics, findings and the doctor."""
