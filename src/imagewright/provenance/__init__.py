"""Where a picture comes from: its record, the metadata that carries it, and the credential that signs it."""
