"""Students of pictures that learn from several targets at once: soft labels, hidden states, attention, relations, embeddings."""
