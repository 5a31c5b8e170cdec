"""Explains in words why an object store refuses or does not answer."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Final

CREDENTIALS: Final[Mapping[str, str]] = {  # where they come from, by the scheme of the address
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a file ~/.aws/credentials, or the role of a machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the service account of a machine",
}
OF_PACKAGE: Final = "see the documentation of its package"
REFUSALS: Final = r"ACCESS_DENIED|FORBIDDEN|SIGNATURE|ACCESS_KEY|TOKEN|response code 403|PERMISSION_DENIED|OAuth2"
SILENCE: Final = r"NETWORK_CONNECTION|UNAVAILABLE|curl|resolv|[Tt]imed? ?out"
REASON: Final = r"Details: |CURL error |with a last message of "  # what stands before the reason in a long message


def explained(error: Exception, address: str) -> OSError:
    """Returns the error of an object store as the error of a file system: with a number, a text and the address.

    The number says whether waiting may help: ETIMEDOUT if the store is silent, EACCES if it refuses, ENODEV if it has
    no such bucket, and EIO for anything else. A missing file stays a FileNotFoundError.
    """
    if isinstance(error, FileNotFoundError):
        return error
    scheme, _, path = address.partition("://")
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if re.search(REFUSALS, text):
        credentials = CREDENTIALS.get(scheme, OF_PACKAGE)
        problem = f"access is refused; check the credentials ({credentials}) and what they may read and write"
        return OSError(errno.EACCES, problem, address)
    if "NO_SUCH_BUCKET" in text:
        return OSError(errno.ENODEV, no_bucket(path.partition("/")[0]), address)
    if re.search(SILENCE, text):
        reason = re.split(REASON, text)[-1].strip(" )")
        problem = f"the store does not answer ({reason}); check the address, the network and the region"
        return OSError(errno.ETIMEDOUT, problem, address)
    return OSError(errno.EIO, text, address)


def no_bucket(name: str) -> str:
    return f"there is no bucket {name!r}; make it, or name another"


def in_words(error: OSError) -> str:
    """Returns the message of an error that `explained` has returned."""
    return f"{error.filename}: {error.strerror}"
