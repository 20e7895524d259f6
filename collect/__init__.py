"""Data collection: recordings and what is known of them, into the lake."""
