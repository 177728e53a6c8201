"""Search for settings by the validation metric of short federations: a study of trials."""
