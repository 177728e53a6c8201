"""Version 1 of the interface: ``recommender.proto``; the modules beside it are generated."""
