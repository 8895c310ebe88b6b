"""A captioned folder becomes batches; the sticker recipe; scenes with exact captions; the licence ledger."""
