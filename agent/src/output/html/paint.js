// Draws a flame graph on a canvas and tells which frame is at a point.
const flamePaint = (() => {
  const ROW = 20;
  const FONT = '12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace';
  // Frames narrower than this, in CSS pixels, are left out with all that is above them.
  const CULL = 0.5;

  // FNV-1a, 32 bits, as in the SVG: a function has the same shade in both.
  function hash(name) {
    let value = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(name)) value = Math.imul(value ^ byte, 0x01000193);
    return value >>> 0;
  }

  function color(kind, name, dark) {
    const value = hash(name);
    const shade = (range) => ((((value << range) | (value >>> (32 - range))) >>> 0) % range);
    const light = {
      0: () => [198, 208, 220],
      1: () => [244, 136 + shade(46), 82 + shade(30)],
      2: () => [250, 222 + shade(20), 140 + shade(40)],
      3: () => [120 + shade(40), 200 + shade(24), 120 + shade(30)],
      4: () => [128 + shade(30), 170 + shade(30), 232 + shade(16)],
      5: () => [172, 172, 172],
    };
    const rgb = (light[kind] || (() => [224, 224, 224]))();
    return `rgb(${rgb.map((part) => Math.round(dark ? part * 0.86 : part)).join(',')})`;
  }

  // The colours of all frames; `faded` are those that a search does not match.
  function palette(frames, dark) {
    const normal = frames.map((frame) => color(frame.kind, frame.name, dark));
    return dark
      ? { normal, faded: '#3a3f47', fadedText: '#a3a9b3', hit: '#b14ae0', hitText: '#fff', text: '#111', edge: '#fff', gap: '#16181d' }
      : { normal, faded: '#e6e7ea', fadedText: '#70757d', hit: '#a31fd6', hitText: '#fff', text: '#111', edge: '#000', gap: '#fff' };
  }

  // Visits the drawn nodes below `root`: `visit(node, x, width, row)`, in CSS pixels.
  function each(view, visit) {
    const { model, sums, root, width } = view;
    const all = sums.total[root];
    if (!(all > 0)) return;
    const scale = width / all;
    for (let node = root; node < model.end[root];) {
      const wide = sums.total[node] * scale;
      const row = model.depth[node] - model.depth[root];
      if (wide < CULL || row > view.lastRow) {
        node = model.end[node];
        continue;
      }
      if (row >= view.firstRow) visit(node, (sums.x[node] - sums.x[root]) * scale, wide, row);
      node++;
    }
  }

  // Whether a node at or below `root` is wide enough to be drawn.
  function isDrawn({ sums, root, width }, node) {
    return (sums.total[node] * width) / sums.total[root] >= CULL;
  }

  // Rows that the tree below `root` has at this width.
  function rows(view) {
    let deepest = 0;
    each({ ...view, firstRow: 0, lastRow: Infinity }, (node, x, wide, row) => {
      deepest = Math.max(deepest, row);
    });
    return deepest + 1;
  }

  function label(context, name, x, y, wide, charWidth) {
    const room = Math.floor((wide - 7) / charWidth);
    if (room < 3) return;
    // Letters of other scripts may be wider than the font's: those names are clipped.
    const foreign = /[^\x20-\x7e]/.test(name);
    const shown = name.length <= room ? name : `${name.slice(0, room - 1)}…`;
    if (foreign) {
      context.save();
      context.beginPath();
      context.rect(x, y, wide - 3, ROW);
      context.clip();
    }
    context.fillText(shown, x + 4, y + ROW / 2 + 0.5);
    if (foreign) context.restore();
  }

  function outline(context, box, color, lineWidth) {
    context.strokeStyle = color;
    context.lineWidth = lineWidth;
    const inset = lineWidth / 2;
    context.strokeRect(box.x + inset, box.y + inset, Math.max(box.wide - lineWidth, 1), ROW - 1 - lineWidth);
  }

  // Draws what is visible. `view`: model, sums, root, width, height, top (scroll position), rows,
  // flipped (root at the bottom), colors, marked, hover and focus (nodes or -1).
  function draw(canvas, view) {
    const ratio = window.devicePixelRatio || 1;
    const device = [Math.max(1, Math.round(view.width * ratio)), Math.max(1, Math.round(view.height * ratio))];
    if (canvas.width !== device[0] || canvas.height !== device[1]) [canvas.width, canvas.height] = device;
    const context = canvas.getContext('2d');
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    context.font = FONT;
    context.textBaseline = 'middle';
    const charWidth = context.measureText('m').width;
    const { colors, model, marked } = view;
    const boxes = {};
    each(visible(view), (node, x, wide, row) => {
      const y = rowTop(view, row);
      const frame = model.frame[node];
      const faded = marked && !marked[node];
      context.fillStyle = !marked ? colors.normal[frame] : faded ? colors.faded : colors.hit;
      context.fillRect(x, y, wide > 3 ? wide - 1 : Math.max(wide, CULL), ROW - 1);
      if (wide > 24) {
        context.fillStyle = !marked ? colors.text : faded ? colors.fadedText : colors.hitText;
        label(context, model.frames[frame].name, x, y, wide, charWidth);
      }
      if (node === view.hover) boxes.hover = { x, y, wide };
      if (node === view.focus) boxes.focus = { x, y, wide };
    });
    if (boxes.hover) outline(context, boxes.hover, colors.edge, 1);
    if (boxes.focus && view.showFocus) outline(context, boxes.focus, colors.edge, 2);
  }

  const rowTop = (view, row) => (view.flipped ? view.rows - 1 - row : row) * ROW - view.top;

  // The view with the rows that can be seen.
  function visible(view) {
    const first = Math.floor(view.top / ROW);
    const last = Math.ceil((view.top + view.height) / ROW);
    return view.flipped
      ? { ...view, firstRow: Math.max(0, view.rows - 1 - last), lastRow: view.rows - 1 - first }
      : { ...view, firstRow: first, lastRow: last };
  }

  // The node at a point of the canvas, or -1.
  function at(view, x, y) {
    const line = Math.floor((y + view.top) / ROW);
    const wanted = view.flipped ? view.rows - 1 - line : line;
    let found = -1;
    each({ ...view, firstRow: wanted, lastRow: wanted }, (node, left, wide) => {
      if (x >= left && x < left + wide) found = node;
    });
    return found;
  }

  // Where a node is drawn, in pixels of the scrolled area; `null` if it is too narrow.
  function box(view, wanted) {
    let found = null;
    each({ ...view, firstRow: 0, lastRow: Infinity }, (node, x, wide, row) => {
      if (node === wanted) found = { x, y: rowTop({ ...view, top: 0 }, row), width: wide, height: ROW };
    });
    return found;
  }

  return { ROW, palette, color, isDrawn, rows, draw, at, box };
})();
