"""Texts as token ids: sequences, masks, and how they are stored."""
