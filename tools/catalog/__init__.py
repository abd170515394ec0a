"""Builds the bundled catalog from public price lists and our own corrections."""
