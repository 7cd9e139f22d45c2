"""Commands of `metaug` over many runs: sweeps and figures. Slow imports wait until they are needed."""

from pathlib import Path

import click

from metaug_core.cli_options import shown


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="The gallery; default: figures/.")
def figures(names: tuple[str, ...], folder: Path | None) -> None:
    """Draw the figures of the gallery again from their stored tables (only NAME..., if given), and write its page."""
    from metaug_core import (
        gallery,
        paper_gallery,  # noqa: F401  (it enters the paper's figures)
    )

    place = folder or gallery.FOLDER
    drawn = gallery.rebuild(place, names or None)
    click.echo(f"drawn: {', '.join(drawn) or 'nothing'}; see {shown(place / 'README.md')}")
