"""Records to token ids: encoded, brought to length, counted and kept."""
