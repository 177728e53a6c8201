"""What a device or a partner site runs: its data source, its meta-updates, its recommendations."""
