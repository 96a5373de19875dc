"""De-identification: what goes in names people, what comes out does not, and a report counts what was done."""
