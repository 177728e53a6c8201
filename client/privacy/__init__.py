"""A site's own privacy: its policy, its ledger and what guards its users."""
