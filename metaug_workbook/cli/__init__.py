"""The command `metaug`."""

import sys
import warnings


def start() -> None:
    """Run the command, or say which part of the installation it lacks."""
    try:
        from metaug_workbook.cli.main import main
    except ModuleNotFoundError as error:
        sys.exit(
            f"metaug: {error.name} is not installed: pip install 'metaug-workbook[workbook]', or [cli] without notebooks"
        )
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    main()
