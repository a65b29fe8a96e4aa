"""Runs of `decant label`: what they are to do, how far they are, and whether anybody works on them."""
