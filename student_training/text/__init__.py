"""Students of texts: what they read, what they give, what they minimise."""
