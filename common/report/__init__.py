"""What people see of a run: one HTML page, its charts, and the verdict over its ledgers."""
