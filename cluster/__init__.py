"""A cluster of several hosts, played on one machine: Flink, Beam's worker pools and an S3-compatible store, all on loopback.

Not part of what is installed: it shows and tests `decant` on a real distributed engine. `python -m cluster --help` says the rest.
"""
