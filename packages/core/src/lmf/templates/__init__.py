"""Templates: what renders conversations, and how one is chosen."""
