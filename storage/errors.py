"""What can go wrong, said so that a person can act: the value, the consequence, the remedy."""

from __future__ import annotations


class DecantError(Exception):
    """Base of every error a user is meant to read; the command line prints it without a traceback.

    Attributes:
        exit_code: the process status with which the command line ends.
    """

    exit_code = 1


class ConfigError(DecantError):
    """A configuration that cannot be run, found before any work starts."""

    exit_code = 2


class UsageError(DecantError):
    """Words of a command line that are no command."""

    exit_code = 2


class SourceError(DecantError):
    """A source that cannot be listed or read as its config says."""


class DuplicateKeyError(SourceError):
    """Two samples of one source share a key."""


class SampleError(DecantError):
    """One sample is unusable; it becomes a dead letter and its unit goes on."""


class TeacherError(DecantError):
    """A teacher that cannot be loaded or run as configured."""


class TeacherConfigError(TeacherError, ConfigError):
    """A teacher, or its device, that a config calls by a name nobody has."""


class CacheError(DecantError):
    """A cache that cannot be read or written."""


class AnotherCacheError(CacheError):
    """A worker that sees another cache than the process that submitted its job."""


class MismatchError(CacheError):
    """What was found is whole but is not what was asked for."""


class CorruptError(CacheError):
    """Stored bytes that are not what was committed."""


class FormatError(CorruptError):
    """Bytes that do not follow docs/format.md, or follow a version this release cannot read."""


class NewerReleaseError(FormatError):
    """Bytes that a newer release wrote: nothing is damaged, and there is nothing to mend."""


class DeadLetterLimitError(DecantError):
    """More samples failed than the config allows."""


class ViewMismatchError(MismatchError):
    """The student side rendered other pixels than the teacher saw."""
