"""Texts on their way to a teacher: tokenizers, sequences, labelling."""
