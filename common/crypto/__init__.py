"""Keys, envelopes at rest and masks: everything that needs a cipher."""
