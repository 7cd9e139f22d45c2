"""Commands of `metaug` that say what there is: methods and settings. Slow imports wait until they are needed."""

import click

from metaug_workbook.cli.options import complete_setting


@click.command()
@click.option("--markdown", is_flag=True, help="Print the tables of docs/methods.md.")
def methods(markdown: bool) -> None:
    """Describe the methods.

    For each: its paper, views, objective, what it remembers between steps, the settings it brings, and what differs from the code
    of its authors.
    """
    from metaug_workbook.cli import catalogue

    click.echo(catalogue.markdown() if markdown else catalogue.text(), nl=not markdown)


@click.command()
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_setting)
def settings(name: str | None) -> None:
    """Explain the settings.

    Without NAME: all of them, with their defaults, what they mean, and which methods use them. NAME is a setting, which is
    explained in full, or a part of several names, such as mag or bank.
    """
    from metaug_core.config import Config, ConfigError
    from metaug_core.errors import suggestion
    from metaug_workbook.cli import settings_catalogue

    if name in Config.model_fields:
        click.echo(settings_catalogue.explain(name))
        return
    names = [setting for setting in Config.model_fields if (name or "") in setting]
    if not names:
        raise ConfigError(f"unknown setting {name!r}{suggestion(name, Config.model_fields)}")
    click.echo(settings_catalogue.list_settings(names))
