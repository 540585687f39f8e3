"""The style sheet of the report: light, readable without a network, printable."""

from __future__ import annotations

CSS = """
:root { --ink: #1f2933; --quiet: #616e7c; --line: #e4e7eb; --wash: #f5f7fa; --solved: #1f6fb2; --unsolved: #f2b84b;
  --failed: #9b1c3f; --left: #cbd2d9; --link: #0b5394;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 15px/1.5 var(--sans); }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 64px; }
header h1 { margin: 0; font-size: 27px; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header .where { margin: 4px 0 0; color: var(--quiet); font-size: 13.5px; overflow-wrap: anywhere; }
.state { display: inline-block; margin-left: 10px; padding: 3px 11px; border-radius: 99px; font-size: 14px;
  font-weight: 600; vertical-align: 4px; letter-spacing: 0; border: 1.5px solid; }
.state.complete { color: #0b4f84; border-color: #a8cbe8; background: #eef6fc; }
.state.running { color: #0b4f84; border-color: #a8cbe8; background: #fff; }
.state.unfinished { color: #7a4a00; border-color: #eccb8a; background: #fff8e8; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin: 20px 0 10px; }
.tile { border: 1px solid var(--line); border-top: 3px solid var(--left); border-radius: 4px; padding: 9px 12px 10px; }
.tile.solved { border-top-color: var(--solved); } .tile.unsolved { border-top-color: var(--unsolved); }
.tile.failed { border-top-color: var(--failed); }
.tile dt { color: var(--quiet); font-size: 13px; }
.tile dd { margin: 0; font-size: 21px; font-weight: 600; line-height: 1.35; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile small { display: block; font-size: 12.5px; font-weight: 400; color: var(--quiet); line-height: 1.35;
  white-space: normal; }
dl { margin: 0; }
.bar { width: 100%; height: 12px; display: block; border-radius: 3px; background: var(--left); }
.bar .solved { fill: var(--solved); } .bar .unsolved { fill: var(--unsolved); } .bar .failed { fill: var(--failed); }
.glance { margin: 16px 0 0; padding: 0; list-style: none; }
.glance li { margin: 3px 0; padding-left: 14px; border-left: 3px solid var(--line); overflow-wrap: anywhere; }
.warn { margin: 16px 0 0; padding: 10px 14px; border-left: 4px solid var(--failed); background: #fdf2f5; }
.warn ul { margin: 4px 0 0; padding-left: 18px; } .warn li { overflow-wrap: anywhere; }
nav { margin: 18px 0 0; padding: 8px 0; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
  font-size: 14px; }
nav a { margin-right: 20px; white-space: nowrap; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: 2px; }
section { margin-top: 34px; }
h2 { margin: 0 0 10px; font-size: 20px; line-height: 1.3; } h3 { margin: 22px 0 8px; font-size: 16px; }
p { margin: 8px 0; max-width: 88ch; } .quiet { color: var(--quiet); }
figure { margin: 10px 0 18px; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: var(--sans) !important; }
figcaption { color: var(--quiet); font-size: 13.5px; max-width: 125ch; } figcaption b { color: var(--ink); }
details { font-size: 13.5px; margin-top: 4px; } summary { cursor: pointer; color: var(--link); width: max-content; }
.frame { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; min-width: 46%; }
th, td { padding: 5px 11px 5px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--quiet); border-bottom: 1.5px solid #9aa5b1; vertical-align: bottom; }
td { white-space: nowrap; } td.word, th.word { text-align: left; }
td.word:not(:first-child), th.word:not(:first-child) { padding-left: 12px; }
td.word { white-space: normal; overflow-wrap: anywhere; }
td:last-child, th:last-child { padding-right: 2px; } tbody tr:nth-child(even) { background: #fafbfc; }
#clusters { width: 100%; } #clusters td:last-child { min-width: 150px; } #reasons { width: 100%; }
#clusters td.word:nth-child(4) { white-space: nowrap; }
#reasons td:first-child { width: 34%; } #slowest, #jobs, #ranks { width: 100%; }
#jobs td.word:nth-child(1), #jobs td.word:nth-child(3), #ranks td.word:first-child { white-space: nowrap; }
.examples { margin: 0; padding-left: 16px; } .examples li { margin-bottom: 3px; overflow-wrap: anywhere; }
.said { color: var(--quiet); } code { font: 12.5px/1.4 var(--mono); overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 0 36px; }
.pair h3 { margin-top: 4px; } .pair table { width: 100%; }
.pair td:first-child { white-space: nowrap; padding-right: 18px; }
footer { margin-top: 44px; padding-top: 10px; border-top: 1px solid var(--line); color: var(--quiet); font-size: 13px; }
@media print {
  @page { size: A4; margin: 12mm; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  .tiles { grid-template-columns: repeat(7, 1fr); gap: 5px; } .tile { padding: 5px 7px; } .tile dd { font-size: 15px; }
  .tile dt, .tile small { font-size: 10px; }
  nav, summary { display: none; } .frame { overflow: visible; } table { font-size: 8pt; } td, th { padding-right: 6px; }
  .first { break-after: page; } h2, h3 { break-after: avoid; }
  tr, .tile { break-inside: avoid; } a { color: inherit; text-decoration: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
