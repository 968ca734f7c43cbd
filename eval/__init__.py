"""Which checkpoint is better, and how sure that is."""
