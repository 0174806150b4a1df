"""Restoration of one image by the Deep Image Prior with sparse codes (section 3, appendix G)."""
