"""The coordinator of a federation of partner sites: Flower's SuperLink, kept by a folder of ours."""
