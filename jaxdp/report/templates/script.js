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
