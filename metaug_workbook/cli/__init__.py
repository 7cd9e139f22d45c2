"""The command `metaug`."""

import os
import sys
import warnings


def start() -> None:
    """Run the command, or say which part of the installation it lacks."""
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:  # closed: else the next file that is opened would take its place, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    # jsonschema would spend a second on this grammar of IRIs, of which a notebook has none.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    try:
        from metaug_workbook.cli.main import main
    except ModuleNotFoundError as error:
        sys.exit(
            f"metaug: {error.name} is not installed: pip install 'metaug-workbook[workbook]', or [cli] without notebooks"
        )
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    main()
