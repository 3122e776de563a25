// An interactive flame graph: `const graph = flame(element, data, options)`.
//
// `element` is filled; `data` is what `output::html::flame::Data` serializes to.
// Options: `global` (the keys work wherever the focus is: for a page that is one graph),
// `height` (most pixels of the drawing, else what is left of the window).
//
// The handle: `update(data)` replaces the data and keeps zoom, focus, search and the choice of
// threads; `search(text)` (as if typed; returns the share of the samples that match, 0 to 1);
// `reset()`; `shown()` (name of the frame that fills the width); `locate(name)` (the middle of
// its widest frame in pixels of the window, `null` if none is drawn).
function flame(element, data, options = {}) {
  let model = flameModel.decode(data);
  let sums;
  let marked = null;
  let colors;
  let queued = false;
  let pointer = null;
  const view = { root: 0, hover: -1, focus: 0, flipped: false, width: 0, height: 0, top: 0, rows: 1, showFocus: false };
  const ui = flameControls(element);
  const name = (node) => model.frames[model.frame[node]].name;
  const count = (samples) => samples.toLocaleString('en-US');
  const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(2)} %` : '–');

  // ---- what is shown

  function accepts() {
    const [what, value] = JSON.parse(ui.threads.value || '["all"]');
    return (group) => what === 'all' || group[what] === value;
  }

  function recount() {
    sums = flameModel.sum(model, accepts());
    if (!(sums.total[view.root] > 0)) view.root = view.focus = 0;
    if (!(sums.total[view.focus] > 0)) view.focus = view.root;
    search();
  }

  function search() {
    let matches = null;
    ui.search.removeAttribute('aria-invalid');
    ui.search.title = '';
    try {
      matches = flameModel.matcher(ui.search.value, ui.regex.checked);
    } catch (error) {
      ui.search.setAttribute('aria-invalid', 'true');
      ui.search.title = error.message;
    }
    marked = matches && flameModel.marks(model, matches);
    layout();
    return marked ? found() / sums.total[view.root] || 0 : 0;
  }

  const found = () => flameModel.matched(model, sums, marked, view.root);

  function zoom(node) {
    view.root = view.focus = node;
    layout();
    ui.view.scrollTop = view.flipped ? ui.view.scrollHeight : 0;
  }

  function layout() {
    ui.empty.hidden = sums.total[0] > 0;
    ui.view.hidden = !ui.empty.hidden;
    const below = ui.view.scrollHeight - ui.view.scrollTop - ui.view.clientHeight;
    view.width = ui.view.clientWidth;
    view.rows = flamePaint.rows({ ...view, model, sums });
    const full = view.rows * flamePaint.ROW;
    ui.view.style.height = `${Math.min(full, options.height || room())}px`;
    ui.spacer.style.height = `${full}px`;
    view.width = ui.view.clientWidth;
    view.height = ui.view.clientHeight;
    // What is seen stays: the rows are counted from the root.
    if (view.flipped) ui.view.scrollTop = ui.view.scrollHeight - below - ui.view.clientHeight;
    crumbs();
    matchText();
    redraw();
  }

  // Pixels of the window that are left below what stands above the drawing, or the most of it.
  function room() {
    const above = ui.view.getBoundingClientRect().top + window.scrollY;
    const most = window.innerHeight * 0.65;
    const left = window.innerHeight - above - 44;
    return Math.round(Math.max(220, left < window.innerHeight * 0.3 ? most : left));
  }

  function redraw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      paint();
    });
  }

  function paint() {
    const dark = isDark();
    if (!colors || colors.dark !== dark || colors.model !== model) {
      colors = { ...flamePaint.palette(model.frames, dark), dark, model };
    }
    view.top = ui.view.scrollTop;
    view.hover = pointer ? under(pointer) : -1;
    ui.canvas.style.cursor = view.hover >= 0 ? 'pointer' : '';
    ui.canvas.style.width = `${view.width}px`;
    ui.canvas.style.height = `${view.height}px`;
    flamePaint.draw(ui.canvas, { ...view, model, sums, marked, colors });
    detail();
  }

  function crumbs() {
    const path = [];
    for (let node = view.root; node >= 0; node = model.parent[node]) path.unshift(node);
    ui.crumbs.replaceChildren();
    for (const [index, node] of path.entries()) {
      const last = index === path.length - 1;
      // Of a long way the middle is left out.
      if (path.length > 9 && index >= 3 && index < path.length - 5) {
        if (index === 3) ui.crumbs.append(make('li', { className: 'gap' }, '…'));
        continue;
      }
      const button = make('button', { type: 'button', title: name(node) }, name(node));
      if (last) button.setAttribute('aria-current', 'true');
      button.addEventListener('click', () => zoom(node));
      ui.crumbs.append(make('li', {}, button));
    }
    ui.reset.disabled = view.root === 0;
  }

  function matchText() {
    const invalid = ui.search.hasAttribute('aria-invalid');
    ui.clear.hidden = ui.search.value === '';
    if (invalid) ui.matched.textContent = 'not a regular expression';
    else if (!marked) ui.matched.textContent = '';
    else {
      const of = view.root === 0 ? '' : ' of what is shown';
      ui.matched.textContent = `${percent(found(), sums.total[view.root])}${of} matched`;
    }
  }

  function detail() {
    const node = view.hover >= 0 ? view.hover : view.focus;
    const frame = model.frames[model.frame[node]];
    const all = sums.total[0];
    const figure = (samples) => `${percent(samples, all)} (${count(samples)})`;
    const origin = [flameModel.KINDS[frame.kind], frame.module, model.place(node)];
    const totals = `total ${figure(sums.total[node])} · self ${figure(sums.own[node])}`;
    show(ui.name, frame.name);
    show(ui.figures, node === 0 ? `${count(all)} ${model.unit}` : totals);
    show(ui.origin, origin.filter(Boolean).join(' · ') || 'every sample of the chosen threads');
  }

  function show(target, text) {
    if (target.textContent !== text) target.textContent = text;
  }

  function listThreads() {
    const chosen = ui.threads.value;
    const all = data.counts.count.reduce((sum, samples) => sum + samples, 0);
    ui.threads.replaceChildren(new Option('All threads', '["all"]'));
    let choices = 0;
    for (const [what, title] of [['process', 'Processes'], ['thread', 'Threads by name']]) {
      const totals = new Map();
      data.counts.group.forEach((group, i) => {
        const value = model.groups[group][what];
        totals.set(value, (totals.get(value) || 0) + data.counts.count[i]);
      });
      choices = Math.max(choices, totals.size);
      const group = make('optgroup', { label: title });
      for (const [value, samples] of [...totals].sort((a, b) => b[1] - a[1])) {
        group.append(new Option(`${value} – ${percent(samples, all)}`, JSON.stringify([what, value])));
      }
      ui.threads.append(group);
    }
    ui.threads.value = chosen;
    if (ui.threads.selectedIndex < 0) ui.threads.selectedIndex = 0;
    ui.threads.hidden = choices < 2;
  }

  // ---- keys

  function move(step) {
    const up = view.flipped ? 'ArrowDown' : 'ArrowUp';
    let next = view.focus;
    if (step === up) next = view.focus === view.root ? view.root : model.parent[view.focus];
    else if (step === 'ArrowLeft' || step === 'ArrowRight') next = sibling(step === 'ArrowRight' ? 1 : -1);
    else {
      const below = flameModel.children(model, sums, view.focus);
      next = below.reduce((best, child) => (best < 0 || sums.total[child] > sums.total[best] ? child : best), -1);
    }
    if (next < 0) return;
    view.focus = next;
    pointer = null;
    view.showFocus = true;
    scrollTo(next);
    redraw();
  }

  // The next frame of the same row, under whatever parent; -1 at the edge.
  function sibling(direction) {
    const depth = model.depth[view.focus];
    const last = model.end[view.root];
    for (let node = view.focus + direction; node > view.root && node < last; node += direction) {
      if (model.depth[node] === depth && flamePaint.isDrawn({ ...view, sums }, node)) return node;
    }
    return -1;
  }

  const box = (node) => flamePaint.box({ ...view, model, sums }, node);

  function scrollTo(node) {
    const place = box(node);
    if (!place) return;
    const { scrollTop, clientHeight } = ui.view;
    if (place.y < scrollTop) ui.view.scrollTop = place.y;
    else if (place.y + place.height > scrollTop + clientHeight) ui.view.scrollTop = place.y + place.height - clientHeight;
  }

  function escape() {
    if (ui.search.value !== '') {
      ui.search.value = '';
      search();
      if (document.activeElement === ui.search) ui.view.focus();
    } else if (view.root !== 0) zoom(model.parent[view.root]);
  }

  const KEYS = {
    ArrowUp: move, ArrowDown: move, ArrowLeft: move, ArrowRight: move,
    Enter: () => zoom(view.focus),
    Escape: escape,
    Home: () => zoom(0),
    '/': startSearch,
    '?': () => ui.help.showModal(),
    i: () => flip(),
  };

  function onKey(event) {
    if (event.defaultPrevented || ui.help.open) return;
    const inside = element.contains(event.target);
    if (!inside && !options.global) return;
    const find = event.key === 'f' && (event.ctrlKey || event.metaKey) && !event.altKey;
    if (find && document.activeElement !== ui.search) {
      event.preventDefault();
      startSearch();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    // Whoever types, types; a button's Enter is the button's.
    if (event.target.closest('input:not([type="checkbox"]), select, textarea') && event.key !== 'Escape') return;
    if (event.target.closest('input, button, a, summary') && event.key === 'Enter') return;
    const action = KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action(event.key);
  }

  function startSearch() {
    ui.search.focus();
    ui.search.select();
  }

  function flip() {
    view.flipped = !view.flipped;
    ui.flip.textContent = view.flipped ? 'Flame ↑' : 'Icicle ↓';
    ui.flip.title = view.flipped ? 'root at the bottom; i: at the top' : 'root at the top; i: at the bottom';
    layout();
    ui.view.scrollTop = view.flipped ? ui.view.scrollHeight : 0;
    scrollTo(view.focus);
  }

  // ---- pointer and events

  // The node at a point of the window, or -1.
  function under({ x, y }) {
    const area = ui.canvas.getBoundingClientRect();
    return flamePaint.at({ ...view, model, sums }, x - area.left, y - area.top);
  }

  function onMove(event) {
    pointer = { x: event.clientX, y: event.clientY };
    if (under(pointer) !== view.hover) redraw();
  }

  ui.canvas.addEventListener('pointermove', onMove);
  ui.canvas.addEventListener('pointerleave', () => {
    pointer = null;
    redraw();
  });
  ui.canvas.addEventListener('click', (event) => {
    const node = under({ x: event.clientX, y: event.clientY });
    view.showFocus = false;
    if (node >= 0) zoom(node);
  });
  ui.view.addEventListener('scroll', redraw);
  ui.view.addEventListener('blur', () => {
    view.showFocus = false;
    redraw();
  });
  ui.view.addEventListener('focus', () => {
    view.showFocus = ui.view.matches(':focus-visible');
    redraw();
  });
  ui.search.addEventListener('input', search);
  ui.search.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') ui.view.focus();
  });
  ui.regex.addEventListener('change', search);
  ui.clear.addEventListener('click', () => {
    ui.search.value = '';
    search();
    ui.search.focus();
  });
  ui.flip.addEventListener('click', flip);
  ui.reset.addEventListener('click', () => zoom(0));
  ui.helpButton.addEventListener('click', () => ui.help.showModal());
  ui.threads.addEventListener('change', recount);
  document.addEventListener('keydown', onKey);
  new ResizeObserver(layout).observe(element);
  onTheme(redraw);

  listThreads();
  recount();

  return {
    update(next) {
      const paths = [view.root, view.focus].map((node) => flameModel.path(model, node));
      data = next;
      model = flameModel.decode(data);
      [view.root, view.focus] = paths.map((keys) => flameModel.find(model, keys));
      // A list that is open stays as it is.
      if (document.activeElement !== ui.threads) listThreads();
      recount();
    },
    search(text) {
      ui.search.value = text;
      return search();
    },
    reset: () => zoom(0),
    shown: () => name(view.root),
    locate(wanted) {
      let best = null;
      for (let node = view.root; node < model.end[view.root]; node++) {
        if (name(node) !== wanted) continue;
        const place = box(node);
        if (place && (!best || place.width > best.width)) best = place;
      }
      if (!best) return null;
      const area = ui.canvas.getBoundingClientRect();
      return { x: area.left + best.x + best.width / 2, y: area.top + best.y - ui.view.scrollTop + best.height / 2 };
    },
  };
}
