"""Whether the S3 stores of a config have credentials: asked before work starts, since a lack of them is final."""

from __future__ import annotations

from collections.abc import Mapping

from storage.config import ExperimentConfig
from storage.connections import MissingCredentialsError, PatientFileSystem
from storage.errors import ConfigError
from storage.filesystem import filesystem_of


def stores_of(config: ExperimentConfig) -> dict[str, str]:
    """Return the URLs of a config's cache and source, by their keys."""
    found = {"cache": config.cache} if config.cache else {}
    paths = getattr(config.source, "path", ())
    named = [paths] if isinstance(paths, str) else list(paths)
    return found | {f"source.path{f'.{index}' if len(named) > 1 else ''}": path for index, path in enumerate(named)}


def check_credentials(urls: Mapping[str, str]) -> None:
    """Refuse S3 URLs for which no credentials are found. Nothing but a machine's own metadata service is asked over a network.

    Args:
        urls: by the keys of a config.

    Raises:
        ConfigError: there are none; where they were looked for, and how to give them.
        CacheError: the protocol is unknown or its package is not installed.
    """
    for key, url in urls.items():
        if not url.startswith(("s3://", "s3a://")):
            continue
        fs, path = filesystem_of(url)
        assert isinstance(fs, PatientFileSystem)
        try:
            fs.check_credentials(path)
        except MissingCredentialsError as error:
            raise ConfigError(f"{key}: {url}: {error.strerror}") from error
