"""How a page of the static site looks: style sheet, navigation, the way to its neighbours. No script, nothing from outside."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from bs4 import BeautifulSoup
from pygments.formatters import HtmlFormatter

TITLE = "MetAug Workbook"
MARK = "<!-- metaug site -->"  # in every page: nothing but an older site is ever overwritten
STYLE = """
body { margin: 0 auto; max-width: 52rem; padding: 0 1rem 3rem; font: 16px/1.55 system-ui, sans-serif; color: #222; }
nav { padding: .7rem 0; border-bottom: 1px solid #ddd; font-size: .9rem; line-height: 1.9; }
nav a, footer a { margin-right: .9rem; white-space: nowrap; }
nav [aria-current] { font-weight: 600; color: inherit; text-decoration: none; }
a { color: #0060a0; }
a.anchor-link { visibility: hidden; margin-left: .3rem; }
:is(h1, h2, h3):hover > a.anchor-link { visibility: visible; }
h1 { line-height: 1.2; }
h2 { margin-top: 2.2rem; }
img { max-width: 100%; }
img.formula { max-width: none; }
.display { display: block; text-align: center; margin: .9rem 0; }
.display, table, pre { overflow-x: auto; }
pre { background: #f6f6f4; padding: .6rem .8rem; font-size: .82rem; line-height: 1.45; border-radius: 4px; margin: .6rem 0; }
.output pre { background: none; padding: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
:not(pre) > code { background: #f6f6f4; overflow-wrap: anywhere; }
table { display: block; border-collapse: collapse; font-size: .88rem; margin: .8rem 0; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
details { border-left: 3px solid #b8d4e8; padding: .1rem .9rem; margin: 1rem 0; }
summary { cursor: pointer; color: #0060a0; }
.control { color: #666; font-size: .85rem; }
footer { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: .7rem; }
""" + HtmlFormatter().get_style_defs(".highlight")


class Page(NamedTuple):
    """One page: the file that it shows, its own file in the site, and what the navigation calls it."""

    source: Path
    name: str
    label: str


def whole(inside: str, page: Page, known: Sequence[Page]) -> str:
    """The page around `inside`, one of `known`: title, links to all pages, and previous and next."""
    heading = BeautifulSoup(inside, "html.parser").find("h1")
    title = heading.get_text().removesuffix("¶") if heading else page.label
    here = {page.name: ' aria-current="page"'}
    links = [f'<a href="{p.name}"{here.get(p.name, "")}>{escape(p.label)}</a>' for p in known]
    at = known.index(page)
    near = [("previous", known[at - 1])] if at else []
    near += [("next", known[at + 1])] if at + 1 < len(known) else []
    footer = [f'<a href="{other.name}" rel="{way}">{way}: {escape(other.label)}</a>' for way, other in near]
    return (
        f'<!DOCTYPE html>\n{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)} - {TITLE}</title>'
        f'<link rel="stylesheet" href="style.css"></head><body><nav>{" ".join(links)}</nav>\n<main>{inside}</main>\n'
        f"<footer>{' '.join(footer)}</footer></body></html>\n"
    )
