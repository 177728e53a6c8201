"""Evaluation protocols: what ``metarec benchmark`` compares methods by."""
