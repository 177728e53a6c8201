"""A site: an organisation's node of a federation, from its invitation to a supervised SuperNode."""
