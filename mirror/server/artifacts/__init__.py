"""Artifacts: drafts while their bytes come in, versions in the tables of the store once they are committed."""
