"""How the page looks: colours that differ for colour-blind readers too, light, dark and on paper."""

from __future__ import annotations

__all__ = ["LETTER", "PALETTE", "STYLE_SHEET", "colour_class"]

LETTER = 9.0
"""The width that a digit of a chart's text takes at most, in the chart's units."""

# After Okabe and Ito 2008, "Color Universal Design", each made darker or lighter: lines have a contrast of 3 to 1 or
# more with the page, which WCAG 2.2 (1.4.11) asks for, and any two differ for readers who lack one kind of cones.
PALETTE = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#f08a3c"),
    ("#009e73", "#7fe8c8"),
    ("#a8457f", "#d65fa6"),
    ("#5c4a00", "#f3e37a"),
    ("#40464d", "#ffffff"),
)
"""The colours of runs, on a light and on a dark page; they are used again after the last."""


def colour_class(run: int | None) -> str:
    """The class with the colour of a run; None is for several runs."""
    return "mixed" if run is None else f"run-{run % len(PALETTE)}"


def _variables(scheme: int) -> str:
    return "".join(f"--run-{i}:{colours[scheme]};" for i, colours in enumerate(PALETTE))


_LIGHT = f"""--page:#f4f6f8;--card:#fff;--ink:#15191e;--soft:#56606b;--line:#d6dce2;--grid:#e7ebef;--warn:#a02408;
--warn-page:#fdece7;--differs:#fff3d1;{_variables(0)}"""
_DARK = f"""--page:#101418;--card:#181d23;--ink:#e9edf1;--soft:#a0abb6;--line:#343c45;--grid:#29313a;--warn:#ff9b82;
--warn-page:#3a1d16;--differs:#3a3215;{_variables(1)}"""

STYLE_SHEET = (
    f":root{{color-scheme:light dark;{_LIGHT}}}\n"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}\n"
    + "".join(f".run-{i}{{color:var(--run-{i})}}" for i in range(len(PALETTE)))
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:76rem;margin:0 auto;padding:1.25rem .75rem 2.5rem}
h1{margin:0 0 1rem;font-size:1.6rem;line-height:1.2;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{margin:2.25rem 0 .75rem;font-size:1.15rem;line-height:1.3}
p{margin:0}
.runs,.charts{display:grid;gap:.75rem;margin:0 0 1rem;padding:0;list-style:none}
.runs li,figure,.scroll{min-width:0;background:var(--card);border:1px solid var(--line);border-radius:10px}
.runs li{padding:.8rem 1rem;border-left:5px solid currentColor}
.runs h2{margin:0;color:var(--ink);font-size:1.05rem;overflow-wrap:anywhere}
.runs p{color:var(--ink);overflow-wrap:anywhere}
.runs .warning{margin-top:.5rem;padding:.4rem .7rem;border-radius:6px;background:var(--warn-page);color:var(--warn);
font-weight:600}
figure{display:flex;flex-direction:column;justify-content:space-between;margin:0;padding:.8rem .7rem .4rem}
figcaption{display:flex;flex-wrap:wrap;gap:.1rem 1rem;align-items:center;padding:0 .25rem .6rem;font-size:.85rem;
color:var(--soft)}
figcaption h3{flex:1 0 100%;margin:0;font-size:1rem;color:var(--ink);overflow-wrap:anywhere}
figcaption span{display:inline-flex;gap:.4rem;align-items:center;min-width:0;overflow-wrap:anywhere}
.key{flex:none;width:28px;height:12px}
.chart{display:block;width:100%;height:auto;overflow:visible}
.chart text{font-size:14px;fill:var(--soft);font-variant-numeric:tabular-nums}
.grid,.base,.line,.mark path{fill:none}
.grid{stroke:var(--grid)}
.base{stroke:var(--soft)}
.line{stroke:currentColor;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.dashed{stroke-dasharray:6 5}
.series:hover{stroke-width:3.5}
.dot{fill:currentColor;stroke:transparent;stroke-width:12}
.mark path{stroke:currentColor;stroke-width:1.2;stroke-dasharray:2 3}
.mark rect{fill:var(--card);stroke:currentColor;stroke-width:1.2}
.chart .mark text{font-size:13px;font-weight:600;fill:var(--ink)}
.mixed{color:var(--soft)}
.scroll{overflow-x:auto;scrollbar-width:thin}
.scroll:focus-visible{outline:2px solid var(--run-0);outline-offset:2px}
table{width:100%;border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .8rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid);min-width:7.5rem;
max-width:26rem;overflow-wrap:anywhere}
thead th{color:var(--soft);font-weight:600;font-size:.82rem;border-color:var(--line);white-space:nowrap}
tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
tbody .part th{padding-top:1rem;color:var(--soft);font-size:.82rem;font-weight:600}
td small{display:block;color:var(--soft);font-size:.85em}
.number{text-align:right;white-space:nowrap;min-width:0}
.wide{min-width:15rem}
.named{display:inline-flex;gap:.4rem;align-items:center;min-width:8rem}
.by{min-width:11rem}
time{white-space:nowrap}
.differs>*{background:var(--differs)}
.differs>th::after{content:" \\2260";color:var(--soft)}
.apart>*{background:var(--warn-page);color:var(--warn);font-weight:600}
.note{margin-top:.5rem;color:var(--soft);font-size:.85rem}
footer{margin-top:2.25rem;color:var(--soft);font-size:.85rem}
@media (min-width:56rem){
main{padding:2rem 1.5rem 3rem}
h1{font-size:2rem}
.charts{grid-template-columns:1fr 1fr;gap:1rem}
.chart text{font-size:12px}
.chart .mark text{font-size:12px}
}
@media print{
@page{margin:14mm}
:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#333;--line:#999;--grid:#ddd;--warn:#000;
--warn-page:#fff;--differs:#fff}
html{font-size:10pt}
body{font-size:10pt}
main{max-width:none;padding:0}
h2{margin-top:1.25rem}
.charts{grid-template-columns:1fr 1fr}
th,td{padding:.2rem .6rem}
th,td,.wide,.by,.named{min-width:0}
thead th{white-space:normal}
time{white-space:normal}
figure,.runs li,tr{break-inside:avoid}
h2{break-after:avoid}
.scroll{overflow:visible}
.runs .warning{border:2px solid #000}
.differs>*,.apart>*{font-weight:700}
}
"""
)
