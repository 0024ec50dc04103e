"""How the report looks: its style sheet, for light and dark and for a window of any width.

Promises:   text stands out from what is behind it by at least 7 to 1 (WCAG AAA), and by 4.5 to 1 where it is small
            print or a mark; the page never scrolls sideways, only the boxes of wide tables and pictures do.
Leaves:     what is said to `page` and `page_sections`.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1e23; --quiet: #50565f; --line: #dcdfe4; --card: #f5f6f8; --link: #00518a;
  --alarm: #a8001e; --alarm-page: #fdecee; --best: #0b5d33; --best-page: #e2f4e9;
  --quick: #5c3d00; --quick-page: #ffe9b8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171b; --ink: #e8eaed; --quiet: #b0b6bf; --line: #363b43; --card: #1e2127; --link: #8ecbff;
    --alarm: #ffb3bd; --alarm-page: #46121b; --best: #9fe5bd; --best-page: #12361f;
    --quick: #ffdf9b; --quick-page: #46350f;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: auto; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 .25rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; max-width: 60rem; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em; }
pre, .scroll { overflow-x: auto; max-width: 100%; }
pre { background: var(--card); padding: .6rem .8rem; border-radius: .4rem; margin: .4rem 0; overflow-wrap: normal; }
section { margin-top: 3rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.question, .quiet { color: var(--quiet); }
.question { font-size: 1.1rem; margin-bottom: .8rem; }
.alarm { background: var(--alarm-page); color: var(--alarm); border-left: .3rem solid var(--alarm);
  padding: .6rem .9rem; margin: .6rem 0; font-weight: 600; border-radius: .2rem; }
.mark { display: inline-block; padding: 0 .45rem; border-radius: .7rem; font-size: .8rem; font-weight: 600;
  white-space: nowrap; vertical-align: middle; }
.mark.quick { background: var(--quick-page); color: var(--quick); }
.mark.best { background: var(--best-page); color: var(--best); }
.mark.wrong { background: var(--alarm-page); color: var(--alarm); }
nav ol { margin: .3rem 0; padding-left: 1.4rem; }
nav li { margin: .25rem 0; }
figure { margin: .8rem 0; background: #ffffff; border: 1px solid var(--line); border-radius: .5rem; padding: .4rem;
  overflow-x: auto; }
figure img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
.scroll { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0 1rem; overflow-wrap: normal; }
.scroll table { width: 100%; }
caption { text-align: left; padding: .5rem .7rem; }
caption b { font-size: 1rem; }
th, td { padding: .28rem .7rem; text-align: left; vertical-align: top; white-space: nowrap; }
tbody { border-top: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 600; }
th[scope=row] { font-weight: 400; }
td.number, th.number { text-align: right; }
tr.best td { font-weight: 600; }
td.wide { min-width: 16rem; white-space: normal; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .15em; margin-right: .45em;
  border: 1px solid var(--quiet); vertical-align: -.05em; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin: .5rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0; }
@media (max-width: 44rem) {
  main { padding: 1rem .8rem 3rem; }
  h1 { font-size: 1.5rem; }
  h2 { font-size: 1.25rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .4rem; }
  figure img { width: 52rem; }
}
"""
