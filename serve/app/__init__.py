"""The inference app: a recording in, the model's answer out, by messages."""
