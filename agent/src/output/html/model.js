// The call tree behind a flame graph: decoding, sums for a choice of threads, search. No DOM.
//
// Nodes are numbered in preorder, so that a node's descendants are the numbers up to its `end`,
// and every sum over the tree is one loop. Node 0 is the root, "all". The format of `data` is
// that of `output::html::flame::Data`.
const flameModel = (() => {
  const KINDS = ['process', 'compiled', 'inlined', 'JIT', 'kernel', 'cut stack'];

  // The whole tree, from the document's arrays.
  function decode(data) {
    const text = (index) => data.strings[index] || '';
    const frames = data.frames.name.map((name, index) => ({
      name: text(name),
      kind: data.frames.kind[index],
      module: text(data.frames.module[index]),
      places: data.frames.places[index].map(([file, line]) => (line > 0 ? `${text(file)}:${line}` : text(file))),
    }));
    frames.unshift({ name: 'all', kind: -1, module: '', places: [''] });
    const size = data.nodes.up.length + 1;
    const model = {
      unit: data.unit,
      size,
      frames,
      frame: new Int32Array(size),
      parent: new Int32Array(size).fill(-1),
      depth: new Int32Array(size),
      end: new Int32Array(size),
      place: (node) => model.frames[model.frame[node]].places[node > 0 ? data.nodes.place[node - 1] : 0] || '',
      groups: data.groups.map(([process, thread]) => ({ process: text(process), thread: text(thread) })),
      counts: { node: [], group: data.counts.group, count: data.counts.count },
    };
    for (let node = 1; node < size; node++) {
      model.parent[node] = node - data.nodes.up[node - 1];
      model.frame[node] = data.nodes.frame[node - 1] + 1;
      model.depth[node] = model.depth[model.parent[node]] + 1;
    }
    for (let node = size - 1; node >= 0; node--) {
      if (model.end[node] === 0) model.end[node] = node + 1;
      const parent = model.parent[node];
      if (parent >= 0) model.end[parent] = Math.max(model.end[parent], model.end[node]);
    }
    let at = 0;
    for (const step of data.counts.node) model.counts.node.push((at += step));
    return model;
  }

  // Sums of the samples whose group `keep` accepts: `own` and `total` of each node, and `x`, the
  // samples to the left of it.
  function sum(model, keep) {
    const kept = model.groups.map(keep);
    const own = new Float64Array(model.size);
    const { node: nodes, group, count } = model.counts;
    for (let i = 0; i < nodes.length; i++) if (kept[group[i]]) own[nodes[i]] += count[i];
    const total = own.slice();
    for (let node = model.size - 1; node > 0; node--) total[model.parent[node]] += total[node];
    const x = new Float64Array(model.size);
    const cursor = new Float64Array(model.size);
    for (let node = 1; node < model.size; node++) {
      const parent = model.parent[node];
      x[node] = cursor[node] = cursor[parent];
      cursor[parent] += total[node];
    }
    return { own, total, x };
  }

  // A test of names for what was typed: a part of the name in whatever case, `"the whole name"`,
  // or a regular expression. `null` for nothing; throws what is no regular expression.
  function matcher(text, regex) {
    if (text === '') return null;
    if (regex) {
      const expression = new RegExp(text, 'iu');
      return (name) => expression.test(name);
    }
    const exact = /^"(.+)"$/u.exec(text);
    if (exact) return (name) => name === exact[1];
    const part = text.toLowerCase();
    return (name) => name.toLowerCase().includes(part);
  }

  // Marks the nodes whose function matches: one byte a node.
  function marks(model, matches) {
    const hit = model.frames.map((frame, index) => index > 0 && matches(frame.name));
    const marked = new Uint8Array(model.size);
    for (let node = 1; node < model.size; node++) marked[node] = hit[model.frame[node]] ? 1 : 0;
    return marked;
  }

  // Samples at or below `root` with a marked frame on their stack; each counts once.
  function matched(model, sums, marked, root) {
    for (let node = root; node > 0; node = model.parent[node]) {
      if (marked[node]) return sums.total[root];
    }
    let samples = 0;
    for (let node = root; node < model.end[root];) {
      if (marked[node]) {
        samples += sums.total[node];
        node = model.end[node];
      } else node++;
    }
    return samples;
  }

  // The children of a node that have samples, in order.
  function children(model, sums, node) {
    const found = [];
    for (let child = node + 1; child < model.end[node]; child = model.end[child]) {
      if (sums.total[child] > 0) found.push(child);
    }
    return found;
  }

  const key = (frame) => `${frame.kind} ${frame.module} ${frame.name}`;

  // The frames from the root to the node, as keys that mean the same in another tree.
  function path(model, node) {
    const keys = [];
    for (; node > 0; node = model.parent[node]) keys.unshift(key(model.frames[model.frame[node]]));
    return keys;
  }

  // The node at the end of the path, or of as much of it as this tree has.
  function find(model, keys) {
    let node = 0;
    for (const wanted of keys) {
      let child = node + 1;
      while (child < model.end[node] && key(model.frames[model.frame[child]]) !== wanted) child = model.end[child];
      if (child >= model.end[node]) break;
      node = child;
    }
    return node;
  }

  return { KINDS, decode, sum, matcher, marks, matched, children, path, find };
})();
