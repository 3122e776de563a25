// The elements around a flame graph's canvas.
function flameControls(element) {
  const button = (className, text, title) => make('button', { type: 'button', className, title }, text);
  const ui = {
    search: make('input', { type: 'search', placeholder: 'Search functions  /', spellcheck: false, autocomplete: 'off' }),
    regex: make('input', { type: 'checkbox' }),
    clear: button('clear', '×', 'clear the search (Esc)'),
    matched: make('output', { className: 'matched' }),
    threads: make('select', { title: 'whose samples are shown' }),
    flip: button('flip', 'Icicle ↓', 'root at the top; i: at the bottom'),
    reset: button('reset', 'Reset zoom', 'show everything (Home)'),
    helpButton: button('keys', '?', 'keys'),
    crumbs: make('ol', {}),
    name: make('span', { className: 'name' }),
    figures: make('span', { className: 'figures' }),
    origin: make('span', { className: 'origin' }),
    canvas: make('canvas', {}),
    spacer: make('div', { className: 'spacer' }),
    view: make('div', { className: 'view', tabIndex: 0 }),
    empty: make('p', { className: 'empty', hidden: true }, 'No samples.'),
    help: help(),
  };
  ui.search.setAttribute('aria-label', 'search functions');
  ui.threads.setAttribute('aria-label', 'threads');
  ui.clear.setAttribute('aria-label', 'clear the search');
  ui.helpButton.setAttribute('aria-label', 'keys');
  ui.canvas.setAttribute('aria-hidden', 'true');
  ui.view.setAttribute('role', 'application');
  ui.view.setAttribute('aria-label', 'flame graph: arrow keys move, Enter zooms, Escape goes back');
  ui.spacer.append(ui.canvas);
  ui.view.append(ui.spacer);

  const regex = make('label', { className: 'regex', title: 'search by regular expression' }, ui.regex, '.*');
  const searching = make('div', { className: 'searching' }, ui.search, ui.clear, regex);
  const tools = make('div', { className: 'tools' }, searching, ui.matched, ui.threads, ui.flip, ui.reset, ui.helpButton);
  const crumbs = make('nav', { className: 'crumbs' }, ui.crumbs);
  crumbs.setAttribute('aria-label', 'zoomed to');
  const detail = make('div', { className: 'detail' }, ui.name, ui.figures, ui.origin);
  detail.setAttribute('aria-live', 'polite');
  ui.matched.setAttribute('aria-live', 'polite');
  element.classList.add('flame');
  element.replaceChildren(tools, crumbs, detail, ui.view, ui.empty, legend(), ui.help);
  return ui;

  function legend() {
    const list = make('ul', { className: 'legend' });
    for (const [kind, text] of [[1, 'compiled'], [2, 'inlined'], [3, 'JIT'], [4, 'kernel'], [5, 'cut stack']]) {
      const swatch = make('span', { className: 'swatch' });
      swatch.style.background = flamePaint.color(kind, '', false);
      list.append(make('li', {}, swatch, text));
    }
    return list;
  }

  function help() {
    const keys = [
      ['click, Enter', 'zoom into the frame'],
      ['Esc', 'clear the search, then one step out'],
      ['Home', 'show everything'],
      ['↑ ↓ ← →', 'move to a caller, callee or neighbour'],
      ['/  Ctrl-F', 'search; "in quotes" for a whole name'],
      ['i', 'icicle or flame: the root at the top or the bottom'],
      ['?', 'this list'],
    ];
    const rows = keys.map(([key, text]) => make('tr', {}, make('th', {}, make('kbd', {}, key)), make('td', {}, text)));
    const close = make('button', { type: 'submit' }, 'Close');
    const form = make('form', { method: 'dialog' }, make('h2', {}, 'Keys'), make('table', {}, make('tbody', {}, ...rows)), close);
    return make('dialog', { className: 'help' }, form);
  }
}
