"""A run over many studies: its plan, its ledger, its files and what it leaves behind."""
