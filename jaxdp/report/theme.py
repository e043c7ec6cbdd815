# SPDX-License-Identifier: Apache-2.0
"""Looks of the sweep's page, and its notes and switches, in the browser's own languages."""

STYLE = """
figure { margin: 1rem 0 1.6rem; } .chart { width: 100%; display: block; max-width: 46rem; }
.chart text { font-size: 14px; fill: var(--ink); } .chart text.soft { fill: var(--soft); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.mark { stroke: var(--soft); stroke-dasharray: 2 4; }
.path { fill: none; stroke: currentColor; stroke-width: 2; }
.whisker { stroke: currentColor; stroke-width: 2; } .dot { fill: currentColor; }
.level { stroke: currentColor; stroke-width: 2; stroke-dasharray: 7 5; }
.band { fill: currentColor; opacity: .13; } .touch { fill: transparent; }
.touch-line { stroke: transparent; stroke-width: 16; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem .5rem; font-size: .88rem; margin: .4rem 0;
  align-items: center; }
.legend button { font: inherit; color: inherit; background: var(--panel);
  border: 1px solid var(--line); border-radius: 1rem; padding: .15rem .7rem; cursor: pointer; }
.legend button[aria-pressed=false] { opacity: .45; text-decoration: line-through; }
.legend i { display: inline-block; width: .75em; height: .75em; border-radius: 50%;
  margin-right: .45em; }
@media (max-width: 40rem) { .chart text { font-size: 20px; } }
.off { display: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem;
  margin: 1.2rem 0; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .7rem .9rem; } .card b { display: block; font-size: 1.5rem; line-height: 1.25; }
.card span { color: var(--soft); font-size: .85rem; }
.warn { background: var(--warn-paper); color: var(--warn); border-left: 4px solid currentColor;
  padding: .6rem .9rem; max-width: 46rem; border-radius: 0 .3rem .3rem 0; }
.heat td { text-align: center; border: 2px solid var(--paper); min-width: 4.2rem; }
.heat th:first-child, .matrix th:first-child { position: sticky; left: 0;
  background: var(--paper); z-index: 1; }
.heat th, .matrix th { white-space: normal; min-width: 4.2rem; }
.heat tbody th { min-width: 9rem; } .matrix td { text-align: center; }
.matrix td.sure { background: color-mix(in srgb, var(--mark) 30%, var(--paper)); }
.matrix td.none { background: var(--panel); }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--ink);
  color: var(--paper); padding: .35rem .6rem; border-radius: .35rem; font-size: .85rem;
  max-width: min(22rem, 90vw); }
details summary { cursor: pointer; color: var(--mark); }
@media print { #tip, details summary { display: none; } .heat td { print-color-adjust: exact;
  -webkit-print-color-adjust: exact; } }
"""

SCRIPT = """
'use strict';
const tip = document.createElement('div');
tip.id = 'tip'; tip.hidden = true; document.body.append(tip);
function show(event) {
  const of = event.target.closest('[data-tip]');
  tip.hidden = !of;
  if (!of) return;
  tip.textContent = of.dataset.tip;
  const box = tip.getBoundingClientRect(), room = 8;
  tip.style.left = Math.max(room, Math.min(event.clientX + 12,
    document.documentElement.clientWidth - box.width - room)) + 'px';
  const above = event.clientY - box.height - 12;
  tip.style.top = (above < room ? event.clientY + 16 : above) + 'px';
}
document.addEventListener('pointermove', show);
document.addEventListener('pointerdown', show);
for (const button of document.querySelectorAll('[data-toggle]')) {
  button.addEventListener('click', () => {
    const on = button.getAttribute('aria-pressed') !== 'true';
    button.setAttribute('aria-pressed', on);
    for (const line of document.querySelectorAll('[data-series="' + button.dataset.toggle + '"]'))
      line.classList.toggle('off', !on);
  });
}
"""
