"""The style sheet of the page: both colour schemes, narrow and wide, screen and paper."""

__all__ = ["STYLE"]

STYLE = """
:root{--paper:#fff;--ink:#1d2327;--faint:#5c6870;--rule:#d5dbe0;--shade:#f3f6f8;--accent:#1f6392;--second:#b0480a;
--good:#0d6e4f;--warn:#7a5200;--line:#8a97a0}
@media (prefers-color-scheme:dark){:root{--paper:#14181b;--ink:#e4e9ec;--faint:#a3b0b8;--rule:#353f46;--shade:#1d2327;
--accent:#6fb7e6;--second:#f0a26b;--good:#6cd0aa;--warn:#e3b85c;--line:#73818b}
.chartlike{filter:invert(.9) hue-rotate(180deg)}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0 auto;max-width:68rem;padding:0 1rem 3rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.25;margin:2rem 0 .5rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--rule);scroll-margin-top:1rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p,li,dd{max-width:46rem}
.lead{font-size:1.08rem;color:var(--faint)}
.small,figcaption,footer{color:var(--faint);font-size:.9rem}
a{color:var(--accent)}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
main:focus{outline:none}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.3rem .6rem}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
nav ul{display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;list-style:none;padding:0;margin:.8rem 0}
nav a{display:inline-block;padding:.2rem 0}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:6px;margin:.8rem 0;position:relative;
width:fit-content;max-width:100%}
table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.4rem .7rem;text-align:left;vertical-align:top;white-space:nowrap}
thead th{background:var(--shade);font-weight:600;white-space:normal;vertical-align:bottom;min-width:4rem}
tbody tr+tr>*{border-top:1px solid var(--rule)}
tbody th{font-weight:600;position:sticky;left:0;background:var(--paper);min-width:6rem;max-width:min(45vw,16rem);
overflow-wrap:break-word;white-space:normal}
.number{text-align:right;font-variant-numeric:tabular-nums}
.wrap td,.wrap th{white-space:normal}.wrap td{overflow-wrap:anywhere}.wrap tbody th{min-width:8rem}
.kind{padding:.05rem .45rem;border-radius:9px;border:1px solid currentColor;font-size:.82rem}
.exact{color:var(--good)}.lower,.upper{color:var(--accent)}.estimate,.score{color:var(--warn)}.unavailable{color:var(--faint)}
dl{margin:.5rem 0}dt{font-weight:600;margin-top:.7rem}dd{margin:.1rem 0 0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr));gap:1rem 1.2rem}
.grid.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}
.grid.tight{grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr))}
figure{margin:0}figure h4{margin:.2rem 0;font-size:.95rem}
figure img{max-width:100%;height:auto;border-radius:4px;display:block}
.pixels{width:7rem;image-rendering:pixelated;background:#fff}
.chart{width:100%;max-width:30rem;height:auto;display:block}
.chart text{font:11px system-ui,sans-serif;fill:var(--ink)}.chart .label{font-weight:600}
.axis{stroke:var(--line);stroke-width:1}.zero{stroke:var(--line);stroke-width:1;stroke-dasharray:4 3}
.dot{fill:var(--accent);fill-opacity:.55}.solid{fill-opacity:1}.bar{fill:var(--accent);fill-opacity:.8}
.band{fill:var(--line);fill-opacity:.3}.line1,.line2{fill:none;stroke:var(--accent);stroke-width:1.8}
.line2{stroke:var(--second);stroke-dasharray:6 3}
details{border:1px solid var(--rule);border-radius:6px;padding:.5rem .8rem;margin:.7rem 0}
summary{cursor:pointer;font-weight:600}
@media print{body{max-width:none}.scroll{overflow:visible}nav,.skip{display:none}}
"""
