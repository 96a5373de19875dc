"""What privacy costs and who may spend it: budgets, events, accounting, admission, noise and the ledger."""
