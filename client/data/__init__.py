"""What a site reads: files on its own disk, turned into records that no wire format can carry."""
