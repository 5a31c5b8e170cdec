"""The frame of the report: one page with its style, which a phone and a printer can show too. It loads nothing."""

from collections.abc import Mapping
from html import escape
from typing import Final

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{name}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1080px; margin: 1.5em auto;
  padding: 0 1em; overflow-wrap: break-word; }}
h1, h2, h3 {{ font-weight: 600; line-height: 1.25; }} h2 {{ margin-top: 2em; border-top: 1px solid #ddd;
  padding-top: .8em; }}
p.note, figcaption {{ color: #555; font-size: .9em; }}
ul.answer {{ background: #f2f6fa; padding: .8em 1em .8em 2em; border-left: 4px solid #0072B2; }}
table {{ border-collapse: collapse; width: 100%; margin: 1em 0; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3em .8em .3em 0; border-bottom: 1px solid #ddd; vertical-align: top;
  min-width: 3em; }}
td[data-name="sampled"], td[data-name^="teacher"] {{ overflow-wrap: anywhere; }}
td[data-name="sampled"] {{ min-width: 16em; }} td[data-name^="teacher"] {{ min-width: 8em; }}
p:has(+ pre) {{ margin: .6em 0 .2em; }}
pre {{ background: #f6f6f6; margin: 0; padding: .5em .8em; white-space: pre-wrap; overflow-wrap: anywhere;
  user-select: all; }}
nav {{ line-height: 1.6; }} nav + h2 {{ margin-top: .8em; }} h4 {{ margin: 1em 0 .3em; }}
figure {{ margin: 0; break-inside: avoid; }}
svg {{ width: 100%; height: auto; display: block; }}
svg text {{ font: 13px system-ui, sans-serif; fill: #333; paint-order: stroke; stroke: #fff; stroke-width: 3px; }}
svg text.title {{ font-weight: 600; }}
svg .grid {{ stroke: #e6e6e6; stroke-width: 1; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1em; }}
.charts figure {{ max-width: 720px; }}
.charts.small {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }}
figure.wide {{ max-width: 720px; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2em 1.4em; font-size: .9em; margin: .4em 0 .8em; }}
.legend span {{ display: inline-flex; align-items: center; gap: .4em; }}
svg.key {{ width: 34px; flex: none; }}
dl {{ display: grid; grid-template-columns: minmax(6em, max-content) 1fr; gap: .2em 1em; }}
dt {{ font-weight: 600; }} dd {{ margin: 0; min-width: 0; overflow-wrap: anywhere; }}
dl.bars dt {{ font-weight: 400; }} dl.bars i {{ display: inline-block; height: .7em; background: #0072B2;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.pictures td {{ padding: 2px; border: 0; min-width: 0; }}
.pictures th {{ font-size: .8em; line-height: 1.3; padding: 2px; vertical-align: bottom; border: 0;
  overflow-wrap: break-word; }}
.pictures img {{ width: 100%; display: block; image-rendering: auto; }}
.pictures table {{ table-layout: fixed; }}
.pictures p {{ font-size: .75em; line-height: 1.25; margin: .2em 0 .6em; overflow-wrap: anywhere; }}
@media (max-width: 640px) {{
  table:not(.plain) td {{ min-width: 0; overflow-wrap: anywhere; }}
  table:not(.plain) thead {{ display: none; }}
  table:not(.plain) tr {{ display: block; border-bottom: 2px solid #bbb; padding: .4em 0; }}
  table:not(.plain) td {{ display: grid; grid-template-columns: 33% 1fr; gap: .6em; border: 0; padding: .1em 0; }}
  table:not(.plain) td::before {{ content: attr(data-name); color: #555; }}
  table:not(.plain) td:first-child {{ grid-template-columns: 1fr; font-weight: 600; }}
  table:not(.plain) td:first-child::before {{ display: none; }}
  table:not(.plain) td.empty {{ display: none; }}
  .pictures thead {{ display: none; }} .pictures tbody {{ display: block; }}
  .pictures tr {{ display: grid; grid-template-columns: repeat(var(--on-a-phone), 1fr); align-items: end;
    margin-bottom: 1em; }}
  .pictures td::before {{ content: attr(data-name); display: block; font-size: .7em; line-height: 1.2;
    overflow-wrap: break-word; }}
  dl {{ grid-template-columns: 1fr; }} dl.bars {{ grid-template-columns: 45% 1fr; }}
}}
@media print {{
  nav {{ display: none; }}
  @page {{ size: A4; margin: 14mm; }}
  body {{ font-size: 10pt; max-width: none; margin: 0; padding: 0; }}
  h2, h3, h4, p.note, .legend, p:has(+ pre) {{ break-after: avoid; }}
  pre, dl.bars, .pictures {{ break-inside: avoid; }} pre {{ font-size: 8.5pt; }}
  tr {{ break-inside: avoid; }} table {{ font-size: 8.5pt; }}
  .charts {{ grid-template-columns: 1fr 1fr; }}
  .pictures table {{ max-width: 110mm; }} td[data-name="sampled"] {{ min-width: 9em; }}
}}
</style></head><body><h1>{name}</h1>
{body}
</body></html>
"""


def contents(parts: Mapping[str, str]) -> str:
    """Returns links to the parts of a page, which are HTML by their titles. Empty parts are left out."""
    links = [f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title, body in parts.items() if body]
    return f"<nav>{' · '.join(links)}</nav>"


def sections(parts: Mapping[str, str]) -> str:
    """Returns the parts of a page under their titles. Empty parts are left out."""
    return "\n".join(f'<h2 id="{_anchor(title)}">{escape(title)}</h2>{body}' for title, body in parts.items() if body)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
