"""`decant doctor`: what every process that would label says of itself, and what of it stands in the way.

Imports no framework: a machine without them is examined, too.
"""
