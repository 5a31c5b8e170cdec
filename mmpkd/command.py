"""How a command ends: a user's mistake is one screen on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from mmpkd.types import ConfigError, UserError


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main` on the command line's words."""
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        count = len(error.mistakes)
        print(
            f"{count} mistake{'s' * (count != 1)}:", *(f"  {one}" for one in error.mistakes), sep="\n", file=sys.stderr
        )
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
